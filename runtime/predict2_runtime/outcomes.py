# SPDX-License-Identifier: Apache-2.0
"""How a request ended, in one word, for whoever counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from predict2_spec.errors import (
    BlockedError,
    EngineMismatchError,
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    RequestExpiredError,
    ServerUnavailableError,
)

Status = Literal["ok", "refused", "blocked", "cancelled", "expired", "unavailable", "failed"]

# The first match wins, so a kind of error stands before its parent.
_STATUSES: tuple[tuple[type[Predict2Error], Status], ...] = (
    (InvalidRequestError, "refused"),
    (BlockedError, "blocked"),
    (RequestExpiredError, "expired"),
    (RequestCancelledError, "cancelled"),
    (ServerUnavailableError, "unavailable"),
    (EngineMismatchError, "unavailable"),
)


@dataclass(frozen=True)
class Outcome:
    """One request that ended."""

    model: str
    status: Status
    seconds: Mapping[
        str, float
    ]  # stage -> time spent in it, clips side by side added up; and "total"
    steps: int  # of the solver that were done, over all stages and clips


def status_of(error: Predict2Error) -> Status:
    """How a request ended that failed with `error`."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), "failed")
