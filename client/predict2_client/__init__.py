# SPDX-License-Identifier: Apache-2.0
"""The client: numpy, tritonclient and PyAV; never torch, never an engine."""

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
from predict2_spec.guardrails import Verdict
from predict2_spec.results import Event, Metadata
from predict2_spec.tracking import RequestState

from .async_client import AsyncClient
from .client import Client
from .wire import Judgement, Result

__all__ = [
    "AsyncClient",
    "BlockedError",
    "BusyError",
    "Client",
    "Event",
    "InvalidRequestError",
    "Judgement",
    "Metadata",
    "Predict2Error",
    "RequestCancelledError",
    "RequestExpiredError",
    "RequestState",
    "Result",
    "ServerError",
    "ServerUnavailableError",
    "Verdict",
]
