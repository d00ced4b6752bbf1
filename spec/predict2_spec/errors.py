# SPDX-License-Identifier: Apache-2.0
"""The one error hierarchy. Every message says the value, the limit and the way out."""

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .guardrails import Verdict


class Predict2Error(Exception):
    """Parent of every error this product raises on purpose."""


class InvalidRequestError(Predict2Error):
    """The request can't be served as it stands; the caller can mend it."""


class BlockedError(Predict2Error):
    """A guardrail refused the prompt or the result."""

    def __init__(self, message: str, verdict: "Verdict | None" = None) -> None:
        super().__init__(message)
        self.verdict = verdict  # None where only the message came over the wire


class RequestCancelledError(Predict2Error):
    """The caller went away or asked to stop; not a failure of the server."""


class RequestExpiredError(RequestCancelledError):
    """Its time limit passed, or nobody renewed its lease, so the server stopped the work."""


class ServerUnavailableError(Predict2Error):
    """No server answers, or it isn't ready; trying again later can help."""


class BusyError(ServerUnavailableError):
    """The server has as much to do as it takes on; trying again after a while helps."""


class EngineMismatchError(Predict2Error):
    """An installed engine doesn't fit this machine, this software or its own manifest."""


class CheckpointError(Predict2Error):
    """A checkpoint file is missing, damaged, or holds other weights than the network needs."""


class VerificationError(Predict2Error):
    """A lowered engine's answers are further from the torch module's than its limit."""


class EngineBuildError(Predict2Error):
    """A network can't be made into an engine; nothing of it was installed."""


class ServerError(Predict2Error):
    """The server failed in a way the caller can't mend."""


def in_words(error: Predict2Error | OSError) -> str:
    """What to tell a person: the system's errors about disks and permissions with their way out."""
    if isinstance(error, Predict2Error):
        return str(error)
    where = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}the disk or your share of it is full; make room and run the command again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}can't be written or read ({error.strerror}); mend the permissions or name another place"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{where}a file is where a folder should be; move it or name another place"
    if error.errno == errno.EISDIR:
        return f"{where}a folder is where a file should be; name another place"
    if error.errno == errno.EFBIG:
        return f"{where}the file system or your limits (ulimit -f) allow no file so large; name another place"
    return str(error)
