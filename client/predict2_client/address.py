# SPDX-License-Identifier: Apache-2.0
"""Where a server is."""

import re

from predict2_spec.errors import InvalidRequestError

DEFAULT_URL = "127.0.0.1:8001"
_HOST_AND_PORT = re.compile(r"(?:[^/:\s\[\]]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")


def check_url(url: str) -> str:
    """The address itself.

    Raises:
        InvalidRequestError: it isn't host:port.
    """
    if not _HOST_AND_PORT.fullmatch(url):
        raise InvalidRequestError(
            f"url {url!r:.100} must be the host and gRPC port of a server, such as {DEFAULT_URL}"
        )
    return url
