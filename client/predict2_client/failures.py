# SPDX-License-Identifier: Apache-2.0
"""What went wrong: gRPC statuses and the server's words into this product's errors, and what may be done about them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from predict2_spec.admission import error_from_words
from predict2_spec.errors import (
    BlockedError,
    BusyError,
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    RequestExpiredError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import BLOCKED_PREFIX, Verdict
from predict2_spec.results import Failure

# What Triton wraps around a message: an anonymous request id, the Python backend's preface
# and the trace of the model's own source.
_PREFACES = re.compile(
    r"^(?:\[request id: [^\]]*\] |in ensemble '[^']*', "
    r"|Failed to process the request\(s\) for model(?: instance)? '[^']*', message: "
    r"|failed to connect to all addresses; last error: \w+: )+"
)
_TRACE = re.compile(r"\n+At:\n.*", re.DOTALL)

# gRPC's words for a call that never left, and for one whose connection broke; a proxy's are among the latter.
_NOT_SENT = re.compile(r"failed to connect|name resolution|DNS resolution", re.IGNORECASE)
_BROKEN = re.compile(
    r"stream removed|socket closed|connection (?:reset|closed|refused)|broken pipe|recvmsg|goaway|keepalive|rst_stream"
    r"|http2 header with status|before headers|without a result",
    re.IGNORECASE,
)
# Streams report a model that isn't there without any status.
_UNKNOWN_MODEL = "unknown model"

# away: no server, or it takes nothing now; the request never ran. lost: the connection broke, so it may be running.
# late: the caller's own time limit. final: nothing to be done about it.
Trouble = Literal["away", "busy", "no model", "lost", "late", "final"]


@dataclass(frozen=True)
class Ended:
    """How a call ended without a result."""

    trouble: Trouble
    error: Predict2Error


def trouble(status: str, details: str) -> Trouble:
    """What trouble a call is in that ended with this gRPC status."""
    text = plain_message(details)
    known = error_from_words(text)
    if isinstance(known, BusyError):
        return "busy"
    if _UNKNOWN_MODEL in text:
        return "no model"
    if isinstance(known, ServerUnavailableError):
        return "away"
    if known is not None:
        return "final"
    if status == "DEADLINE_EXCEEDED":
        return "late"
    if status == "UNAVAILABLE" and _NOT_SENT.search(details):
        return "away"
    if status in ("UNAVAILABLE", "UNKNOWN", "INTERNAL", "CANCELLED") and _BROKEN.search(text):
        return "lost"
    return "away" if status == "UNAVAILABLE" else "final"


def plain_message(text: str) -> str:
    """A server's error message without what Triton and gRPC wrap around it."""
    return _TRACE.sub("", _PREFACES.sub("", text)).strip() or "no reason was given"


def failure_error(failure: Failure, url: str) -> Predict2Error:
    """The error that a server told as data, at the end of a stream or through `tracking`."""
    error = error_from(failure.status, failure.message, url, answered=True)
    if isinstance(error, BlockedError) and failure.verdict:
        error.verdict = _read_verdict(failure.verdict)
    return error


def _read_verdict(values: Mapping[str, Any]) -> Verdict | None:
    try:
        return Verdict.from_json(json.dumps(values))
    except (TypeError, ValueError, AttributeError):  # of another version; the message says enough
        return None


def error_from(code: str, details: str, url: str, *, answered: bool = False) -> Predict2Error:
    """The error a gRPC status stands for.

    Args:
        code: its name, such as INVALID_ARGUMENT.
        details: its message.
        url: of the server.
        answered: the server is up, so UNAVAILABLE is its own word, such as for a critic it hasn't.
    """
    text = plain_message(details)
    if code == "INVALID_ARGUMENT":
        refused = BlockedError if text.startswith(BLOCKED_PREFIX) else InvalidRequestError
        return refused(text)
    if code == "UNAUTHENTICATED":
        return InvalidRequestError(f"the server at {url} doesn't let this caller in: {text}")
    known = error_from_words(text)
    if isinstance(known, BusyError):
        return BusyError(f"{known} (server at {url}), or let the client do so: --retry-for S")
    if isinstance(known, RequestExpiredError):
        return known
    if code == "CANCELLED":
        return RequestCancelledError(text)
    if code == "DEADLINE_EXCEEDED":
        return RequestExpiredError(
            "no result within the time limit, so the request was cancelled; allow it more time"
        )
    return _unavailable(code, str(known or text), url, answered) or ServerError(text)


def _unavailable(code: str, text: str, url: str, answered: bool) -> ServerUnavailableError | None:
    if _UNKNOWN_MODEL in text:
        return ServerUnavailableError(
            f"the server at {url} can't take this now ({text}): it is starting or stopping, "
            "or its preset doesn't serve this task; `predict2 ready` waits until it is up"
        )
    if code == "UNAVAILABLE" and answered:
        return ServerUnavailableError(f"the server at {url} can't do this: {text}")
    if code == "UNAVAILABLE" or "Stream removed" in text:
        return ServerUnavailableError(
            f"the server at {url} is unavailable ({text}); predict2-serve starts one, "
            "`predict2 ready` waits until it is up"
        )
    return None


def lost_error(request_id: str, url: str, seconds: float) -> ServerUnavailableError:
    """The error of a connection that broke and didn't come back."""
    return ServerUnavailableError(
        f"the connection to the server at {url} broke and didn't come back within {seconds:g} s; once the server "
        f"answers, `predict2 fetch {request_id}` brings the result of request {request_id} if it was finished"
    )
