# SPDX-License-Identifier: Apache-2.0
"""Watching over one request: who is told how far it is, and whether its work is to go on."""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from predict2_spec.errors import (
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    RequestExpiredError,
)
from predict2_spec.results import Event
from predict2_spec.tensors import Model
from predict2_spec.tracking import (
    LEASE_PARAMETER,
    LEASE_WAITS_PARAMETER,
    MAX_LEASE_S,
    MIN_LEASE_S,
    check_request_id,
    is_meant,
)

from .drain import is_stopping, run_folder
from .following import Record, StateFolder, open_state
from .kept import Kept, Outputs
from .policy import read_policy
from .stages import Arrays
from .status import to_failure

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """On what terms requests are worked on."""

    state: StateFolder | None = None  # where those with an id are followed; None: nowhere
    longest_s: float = math.inf  # a request may ask for less
    check_caller: Callable[[Any], None] = lambda request: None  # refuses who may not ask at all
    # whether the server only finishes what runs, and ends
    stopping: Callable[[], bool] = field(default=lambda: False, compare=False)


def open_terms(environment: Mapping[str, str]) -> Terms:
    """The terms of the server that this process belongs to.

    Raises:
        ServerUnavailableError: its folder for followed requests can't be used.
    """
    policy = read_policy(environment)
    stopping = partial(is_stopping, run_folder(environment))
    return Terms(open_state(environment, policy), policy.request_timeout_s, stopping=stopping)


class Watch:
    """One request's caller, time limit, lease and files."""

    def __init__(self, request: Any, emit: Callable[[Event], None], terms: Terms) -> None:
        self._request = request
        self._emit = emit
        self._state = terms.state
        self._stopping = terms.stopping
        asked_s = request.timeout() / 1e6  # 0: no wish
        self._limit_s = min(asked_s or math.inf, terms.longest_s)
        self._deadline = time.monotonic() + self._limit_s  # Triton bounds the waiting by it too
        self._lease_s: int | None = None
        self._lease_waits = False
        self._record: Record | None = None

    def follow(self, model: Model, inputs: Arrays) -> Outputs | None:
        """Follow the request from here on if it has an id; what an earlier one made that was the same.

        Raises:
            InvalidRequestError: its id or lease can't be one, or the id is taken.
            RequestCancelledError: it was cancelled before it began.
        """
        lease_s, self._lease_waits = _read_lease(self._request)
        request_id = self._request.request_id() if self._state else ""
        if lease_s is not None and not request_id:
            raise InvalidRequestError(
                f"{LEASE_PARAMETER} {lease_s} was given to a request that isn't followed; give it an id as well, or "
                f"leave it out ({model.name} of a server started by predict2-serve follows those with an id)"
            )
        if not (self._state and request_id) or (lease_s is None and not is_meant(request_id)):
            return None
        check_request_id(request_id)
        try:
            begun = self._state.begin(request_id, _digest(model, inputs), lease_s)
        except OSError as error:
            log.warning("request %s can't be followed: %s", request_id, error)
            return None
        if isinstance(begun, Kept):
            return begun.outputs
        self._record, self._lease_s = begun, lease_s
        begun.check()
        return None

    def tell(self, event: Event) -> None:
        """Tell everybody who wants to know how far the request is."""
        if self._record:
            self._record.note(event)
        # Under a lease the work goes on for a caller who is gone; to send to him could crash Triton.
        if self._lease_s is None or not self._request.is_cancelled():
            self._emit(event)

    def check(self) -> None:
        """Go on only while somebody waits and there is time.

        Raises:
            RequestCancelledError: the caller is gone, without a lease, or it was cancelled through `tracking`.
            RequestExpiredError: its time limit passed, or nobody renewed its lease.
        """
        if self._record:
            # A proxy sends a server that stops no more calls, so nobody can renew; a caller who is there waits on.
            waits = (self._lease_waits or self._stopping()) and not self._request.is_cancelled()
            if waits and self._lease_waits:
                self._record.renew()
            self._record.check(leased=not waits)
        if time.monotonic() > self._deadline:
            raise RequestExpiredError(
                f"the request's time limit of {self._limit_s:g} s passed; allow it more time"
            )
        if self._lease_s is None and self._request.is_cancelled():
            raise RequestCancelledError("the request was cancelled by its caller")

    def made(self, outputs: Outputs) -> None:
        """The work is done."""
        if self._record:
            self._record.keep(outputs)

    def failed(self, error: Predict2Error) -> None:
        """The work failed."""
        if self._record:
            self._record.fail(to_failure(error))


def _read_lease(request: Any) -> tuple[int | None, bool]:
    """The request's lease in seconds, None without one; and whether it begins only when the connection is lost.

    Raises:
        InvalidRequestError: it is no whole number, or outside its limits.
    """
    try:
        parameters = json.loads(request.parameters() or "{}")
    except ValueError as error:
        raise InvalidRequestError(f"the request's parameters can't be read: {error}") from error
    lease_s = parameters.get(LEASE_PARAMETER)
    if lease_s is None:
        return None, False
    if type(lease_s) is not int or not MIN_LEASE_S <= lease_s <= MAX_LEASE_S:
        raise InvalidRequestError(
            f"{LEASE_PARAMETER} {lease_s!r:.40} must be a whole number of seconds from {MIN_LEASE_S} to {MAX_LEASE_S}"
        )
    return lease_s, parameters.get(LEASE_WAITS_PARAMETER) is True


def _digest(model: Model, inputs: Mapping[str, Any]) -> str:
    """SHA-256 over a request's content: equal for what must give the same result."""
    sha = hashlib.sha256(model.name.encode())
    for name, value in sorted(inputs.items()):
        if isinstance(value, list):
            sha.update(json.dumps([name, value]).encode())
        else:
            sha.update(json.dumps([name, value.dtype.str, value.shape]).encode())
            sha.update(value.tobytes())
    return sha.hexdigest()
