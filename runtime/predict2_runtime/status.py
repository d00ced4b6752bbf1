# SPDX-License-Identifier: Apache-2.0
"""Our errors as Triton status codes and back; the one table both edges of the server use."""

from typing import Any

from predict2_spec.errors import (
    BlockedError,
    EngineMismatchError,
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)

# error class -> name of the constant in pb_utils.TritonError; the first match wins
_CODES: tuple[tuple[type[Predict2Error], str], ...] = (
    (InvalidRequestError, "INVALID_ARG"),
    (BlockedError, "INVALID_ARG"),
    (RequestCancelledError, "CANCELLED"),
    (ServerUnavailableError, "UNAVAILABLE"),
    (EngineMismatchError, "UNAVAILABLE"),
)


def to_triton(pb_utils: Any, error: Predict2Error) -> Any:
    """The error as a TritonError."""
    name = next((name for kind, name in _CODES if isinstance(error, kind)), "INTERNAL")
    return pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, name))


def from_triton(pb_utils: Any, error: Any, model: str) -> Predict2Error:
    """The error another model answered with, as ours."""
    code, message = error.code(), error.message()
    for kind, name in _CODES:
        if code == getattr(pb_utils.TritonError, name):
            return kind(message)
    return ServerError(f"{model} failed: {message}")
