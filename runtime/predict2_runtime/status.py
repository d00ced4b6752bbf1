# SPDX-License-Identifier: Apache-2.0
"""Our errors as Triton status codes and back; the one table both edges of the server use."""

from dataclasses import asdict
from typing import Any

from predict2_spec.admission import error_from_words, prefix_of
from predict2_spec.errors import (
    BlockedError,
    EngineMismatchError,
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import BLOCKED_PREFIX
from predict2_spec.results import Failure

# error class, name of the constant in pb_utils.TritonError, name of the gRPC status; the first match wins
_CODES: tuple[tuple[type[Predict2Error], str, str], ...] = (
    (InvalidRequestError, "INVALID_ARG", "INVALID_ARGUMENT"),
    (BlockedError, "INVALID_ARG", "INVALID_ARGUMENT"),
    (RequestCancelledError, "CANCELLED", "CANCELLED"),
    (ServerUnavailableError, "UNAVAILABLE", "UNAVAILABLE"),
    (EngineMismatchError, "UNAVAILABLE", "UNAVAILABLE"),
)


def _names(error: Predict2Error) -> tuple[str, str]:
    found = (names for kind, *names in _CODES if isinstance(error, kind))
    triton, grpc = next(found, ["INTERNAL", "INTERNAL"])
    return triton, grpc


def to_triton(pb_utils: Any, error: Predict2Error) -> Any:
    """The error as a TritonError."""
    code = getattr(pb_utils.TritonError, _names(error)[0])
    return pb_utils.TritonError(f"{prefix_of(error)}{error}", code)


def to_failure(error: Predict2Error) -> Failure:
    """The error as the last message of a stream."""
    verdict = getattr(error, "verdict", None)
    return Failure(
        _names(error)[1], f"{prefix_of(error)}{error}", asdict(verdict) if verdict else None
    )


def from_triton(pb_utils: Any, error: Any, model: str) -> Predict2Error:
    """The error another model answered with, as ours."""
    code, message = error.code(), error.message()
    if message.startswith(BLOCKED_PREFIX):
        return BlockedError(message)
    if known := error_from_words(message):
        return known
    for kind, name, _ in _CODES:
        if code == getattr(pb_utils.TritonError, name):
            return kind(message)
    return ServerError(f"{model} failed: {message}")
