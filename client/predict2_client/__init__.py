# SPDX-License-Identifier: Apache-2.0
"""The client: numpy, tritonclient and PyAV; never torch, never an engine."""

from predict2_spec.errors import (
    BlockedError,
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import Verdict
from predict2_spec.results import Event, Metadata

from .client import Client
from .wire import Judgement, Result

__all__ = [
    "BlockedError",
    "Client",
    "Event",
    "InvalidRequestError",
    "Judgement",
    "Metadata",
    "Predict2Error",
    "RequestCancelledError",
    "Result",
    "ServerError",
    "ServerUnavailableError",
    "Verdict",
]
