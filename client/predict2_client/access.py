# SPDX-License-Identifier: Apache-2.0
"""How a client gets in: TLS, and a token that says who it is."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from predict2_spec.errors import InvalidRequestError

# Of a call about one request: proxies send all calls about it to the same server (deploy/proxy).
REQUEST_HEADER = "predict2-request"
# Not a name such as 127.example.org.
_LOCAL = re.compile(r"(?:127(?:\.\d{1,3}){3}|localhost|\[::1\]):\d+")
_TOKEN = re.compile(r"[\x21-\x7e]{1,4096}")


def is_local(url: str) -> bool:
    """Whether the address is this machine's own."""
    return bool(_LOCAL.fullmatch(url))


@dataclass(frozen=True)
class Access:
    """What a connection is opened with, and each call is sent with."""

    tls: bool = False
    ca: bytes | None = field(default=None, repr=False)  # PEM; None: what gRPC trusts by itself
    token: str = field(default="", repr=False)

    def headers(self, request_id: str) -> tuple[tuple[str, str], ...]:
        """gRPC metadata of a call; an empty `request_id`: it is about none."""
        who = (("authorization", f"Bearer {self.token}"),) if self.token else ()
        return (*who, (REQUEST_HEADER, request_id)) if request_id else who

    def credentials(self) -> Any:
        """gRPC's for a channel; None without TLS."""
        return grpc.ssl_channel_credentials(self.ca) if self.tls else None


OPEN = Access()  # in the clear, to a server that lets everybody in


def make_access(url: str, tls: bool, ca_file: str | Path | None, token: str) -> Access:
    """How to get in at `url`.

    Args:
        url: host:port.
        tls: encrypt, and check the server's certificate; a `ca_file` means it too.
        ca_file: PEM of the authorities to trust in the place of the public ones.
        token: of this caller; empty for none.

    Raises:
        InvalidRequestError: the file can't be read or holds no certificate, the token can't be one, or would cross a
            network in the clear.
    """
    if token and not _TOKEN.fullmatch(token):
        raise InvalidRequestError(
            "the token (PREDICT2_TOKEN) must be up to 4096 printable characters without spaces; is a line break in it?"
        )
    ca = _read_ca(Path(ca_file)) if ca_file else None
    encrypted = tls or ca is not None
    if token and not encrypted and not is_local(url):
        raise InvalidRequestError(
            f"a token for {url} would cross the network in the clear; use TLS (tls=True, --tls) or send none"
        )
    return Access(encrypted, ca, token)


def _read_ca(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequestError(
            f"ca_file {path} can't be read: {error.strerror or error}"
        ) from error
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise InvalidRequestError(f"ca_file {path} holds no certificate in PEM")
    return data
