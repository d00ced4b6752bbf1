# SPDX-License-Identifier: Apache-2.0
"""What passes between a client and a server: calls, leases, retries, reconnecting. Both clients are faces of it.

A request gets an id, and a lease that is renewed while somebody waits, so it outlives its connection: when that breaks,
the server is asked for the result by the id. The lease is also why leaving early must be said: through the model
`tracking`, or, where a server has none, by ending the call.
"""

import contextlib
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from tritonclient.grpc import service_pb2

from predict2_spec.admission import IS_RUNNING
from predict2_spec.errors import (
    InvalidRequestError,
    Predict2Error,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.requests import Request
from predict2_spec.results import Event, Failure
from predict2_spec.tensors import GENERATE
from predict2_spec.tracking import (
    MAX_LEASE_S,
    MIN_LEASE_S,
    Action,
    RequestState,
    check_request_id,
)

from . import failures, wire
from .failures import Ended
from .patience import Patience, pause_s
from .transport import STREAM, Call, CallFailedError, Transport
from .wire import Judgement, Result

T = TypeVar("T")
OnEvent = Callable[[Event], None]
OnRetry = Callable[[Predict2Error, float], None]

DEFAULT_LEASE_S = 30
_PROBE_S = 3.0
_PROBE_PAUSE_S = 0.25
_ASK_S = 5.0
_FETCH_S = 300.0  # a whole result, maybe over a slow line
_CANCEL_S = 2.0  # whoever presses Ctrl-C doesn't wait longer
# Until a stream is over. It ends by itself after its result or a cancel, and cancelling it before would make the
# server count a finished request as cancelled, or crash it: Triton 2.51 may when its model sends just then.
_STREAM_END_S = 5.0
_CANCELLED_END_S = 2.0
_LATE_S = 2.0  # after the time limit, so that the server's own words arrive
_POLL_S = 1.0
_FOR_EVER_S = 10 * 365 * 24 * 3600.0  # gRPC and Triton can't count much further


@dataclass(frozen=True)
class Terms:
    """How a client's requests are sent.

    Raises:
        InvalidRequestError: a value is outside its limits.
    """

    lease_s: int = DEFAULT_LEASE_S  # how long a server works on for a client that isn't heard of
    retry_for_s: float = 0.0  # how long to try again where a server is busy or away
    priority: int = 0  # one of predict2_spec.admission's; 0: the server's default
    on_retry: OnRetry | None = None  # told why there is a pause, and of how many seconds

    def __post_init__(self) -> None:
        if type(self.lease_s) is not int or not MIN_LEASE_S <= self.lease_s <= MAX_LEASE_S:
            raise InvalidRequestError(
                f"lease_s {self.lease_s!r:.40} must be a whole number between {MIN_LEASE_S} and {MAX_LEASE_S}"
            )
        if not 0 <= self.retry_for_s < math.inf:
            raise InvalidRequestError(f"retry_for_s {self.retry_for_s} must be 0 or more")


@dataclass(frozen=True)
class _Job:
    """A request that somebody waits for."""

    request_id: str
    message: Any  # ModelInferRequest
    on_event: OnEvent | None
    deadline: float  # of time.monotonic()
    more: bool = False  # its result holds what `tracking` doesn't bring


def _deadline(timeout_s: float | None) -> float:
    """When a time limit that begins now is over, of time.monotonic(); infinity without one.

    Raises:
        InvalidRequestError: it is negative or NaN.
    """
    if timeout_s is None or timeout_s > _FOR_EVER_S:
        return math.inf
    if not timeout_s >= 0:
        raise InvalidRequestError(f"timeout_s {timeout_s} must be 0 or more")
    return time.monotonic() + timeout_s


class Exchange:
    """One client's dealings with one server."""

    def __init__(self, url: str, transport: Transport, terms: Terms) -> None:
        self.url = url
        self._transport = transport
        self._terms = terms
        self._running: set[str] = set()
        self._tracks = False  # as far as is known

    async def close(self) -> None:
        """Cancel what still runs, and close the connection."""
        for request_id in tuple(self._running):
            await self._cancel_quietly(request_id)
        await self._transport.close()

    async def is_ready(self) -> bool:
        """Whether a server answers and has loaded all its models; InvalidRequestError: it doesn't let us in."""
        try:
            answer = await self._once("ServerReady", service_pb2.ServerReadyRequest(), _PROBE_S)
        except CallFailedError as error:
            if error.status == "UNAUTHENTICATED":
                raise failures.error_from(error.status, error.details, self.url) from None
            return False
        return bool(answer.ready)

    async def wait_until_ready(self, timeout_s: float) -> None:
        """Return as soon as the server is ready; ServerUnavailableError if it isn't in time."""
        deadline = time.monotonic() + timeout_s
        while not await self.is_ready():
            if time.monotonic() >= deadline:
                raise ServerUnavailableError(
                    f"no server is ready at {self.url} after {timeout_s:g} s; "
                    "start one with predict2-serve, or name another with --url"
                )
            await self._transport.sleep(_PROBE_PAUSE_S)

    async def generate(
        self, request: Request, on_event: OnEvent | None, timeout_s: float | None, request_id: str
    ) -> Result:
        """Run a request to its end; through the model that streams, if somebody listens."""
        model = GENERATE.name if on_event else request.task
        message = wire.infer_request(request, model)
        more = request.return_frames
        return await self.run(message, on_event, timeout_s, request_id, more=more)

    async def run(
        self,
        message: Any,
        on_event: OnEvent | None,
        timeout_s: float | None,
        request_id: str,
        *,
        more: bool = False,
    ) -> Result:
        """Send a request until it is accepted, and wait for its result wherever that comes from."""
        request_id = request_id or uuid4().hex
        check_request_id(request_id)
        deadline = _deadline(timeout_s)
        job = _Job(request_id, message, on_event, deadline, more=more)
        self._running.add(request_id)
        try:
            return await self._persist(partial(self._attempt, job), deadline)
        finally:
            self._running.discard(request_id)

    async def judge(self, message: Any, timeout_s: float | None) -> Judgement:
        """Ask the critic, which is not followed: asking again costs little."""
        deadline = _deadline(timeout_s)

        async def attempt(again: bool) -> Judgement | Ended:
            left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            try:
                return wire.read_judgement(await self._once("ModelInfer", message, left_s))
            except CallFailedError as error:
                return await self._ended(error)

        return await self._persist(attempt, deadline)

    async def _persist(self, attempt: Callable[[bool], Awaitable[T | Ended]], deadline: float) -> T:
        """What `attempt` comes to, tried again where that is safe; it is told whether it is another one."""
        patience = Patience(self._terms.retry_for_s)
        again = False
        while isinstance(answer := await attempt(again), Ended):
            again = True
            pause = patience.next_pause_s(answer.trouble, safe=self._tracks)
            if pause is None or time.monotonic() + pause >= deadline:
                raise answer.error
            if self._terms.on_retry:
                self._terms.on_retry(answer.error, pause)
            await self._transport.sleep(pause)
        return answer

    async def fetch(
        self, request_id: str, on_event: OnEvent | None, timeout_s: float | None
    ) -> Result:
        """The result of a request sent before, as soon as it is there."""
        check_request_id(request_id)
        deadline = _deadline(timeout_s)
        answer = await self._wait_for(request_id, on_event, deadline)
        if isinstance(answer, Result):
            return answer
        if answer is None:
            raise InvalidRequestError(
                f"the server at {self.url} knows no request {request_id}: it hasn't begun, or its result is kept no "
                "longer"
            )
        if answer.trouble == "late":
            raise ServerUnavailableError(
                f"request {request_id} isn't finished after {timeout_s:g} s; ask again, within its lease"
            )
        raise answer.error

    async def ask(self, request_id: str, action: Action) -> RequestState:
        """What `tracking` says of a request, told to do something about it."""
        try:
            return (await self._ask(request_id, action, _ASK_S))[0]
        except CallFailedError as error:
            raise (await self._ended(error)).error from None

    async def _attempt(self, job: _Job, again: bool) -> Result | Ended:
        """One sending of a request, and what comes of it."""
        try:
            self._tracks = self._tracks or await self._does_track(job.request_id)
        except CallFailedError as error:
            return await self._ended(error)
        answer = await self._send(job)
        if not isinstance(answer, Ended) or not self._tracks:
            return answer
        # Sent again by the same id it is refused while the first still runs. Refused for another reason, it is not ours.
        runs = again and IS_RUNNING in str(answer.error)
        if answer.trouble == "lost" or runs:
            async with self._cancelling(job.request_id):
                found = await self._wait_for(job.request_id, job.on_event, job.deadline)
            if found is not None and not (job.more and isinstance(found, Result)):
                answer = found
        if isinstance(answer, Ended) and answer.trouble == "late":
            await self._cancel_quietly(job.request_id)
        return answer

    async def _does_track(self, request_id: str) -> bool:
        """Whether the server follows requests; CallFailedError where there is none."""
        try:
            await self._ask(request_id, "look", _ASK_S)
        except CallFailedError:
            if await self.is_ready():  # an older one, or bare Triton, which has no folder for them
                return False
            raise
        return True

    async def _send(self, job: _Job) -> Result | Ended:
        """One call for a request, from its first response to its last."""
        left_s = job.deadline - time.monotonic()
        message = service_pb2.ModelInferRequest()
        message.CopyFrom(job.message)
        message.id = job.request_id
        lease_s = self._terms.lease_s if self._tracks else 0
        wire.set_terms(message, self._terms.priority, lease_s, left_s)
        streams = message.model_name == GENERATE.name
        limit_s = None if left_s == math.inf else max(0.0, left_s) + _LATE_S
        call = self._transport.open(STREAM if streams else "ModelInfer", message, limit_s)
        end_s = _CANCELLED_END_S if streams and self._tracks else 0.0
        try:
            async with self._renewing(job.request_id, call), self._cancelling(job.request_id):
                async for response in call:
                    answer = wire.read_response(response)
                    if not isinstance(answer, Event):
                        end_s = _STREAM_END_S
                        return self._settled(answer)
                    if job.on_event:
                        job.on_event(answer)
        except CallFailedError as error:
            return await self._ended(error)
        finally:
            await call.end(end_s)
        return Ended("lost", ServerError("the server ended the stream without a result"))

    def _settled(self, answer: Result | Failure) -> Result | Ended:
        """A result, or what the server itself says of a failure."""
        if isinstance(answer, Result):
            return answer
        trouble = failures.trouble(answer.status, answer.message)
        return Ended(trouble, failures.failure_error(answer, self.url))

    async def _ended(self, error: CallFailedError) -> Ended:
        trouble = failures.trouble(error.status, error.details)
        answered = error.status == "UNAVAILABLE" and trouble == "away" and await self.is_ready()
        if trouble == "no model" and not await self.is_ready():
            trouble = "away"
        return Ended(
            trouble,
            failures.error_from(error.status, error.details, self.url, answered=answered),
        )

    async def _wait_for(
        self, request_id: str, on_event: OnEvent | None, deadline: float
    ) -> Result | Ended | None:
        """What becomes of a request that another call began; None where the server knows nothing of it."""
        heard, seen, misses = time.monotonic(), None, 0
        while True:
            found = await self._find(request_id)
            if isinstance(found, Ended) and found.trouble in ("away", "lost"):
                if time.monotonic() - heard > self._terms.lease_s:
                    lost = failures.lost_error(request_id, self.url, self._terms.lease_s)
                    return Ended("away", lost)
                pause, misses = min(pause_s(misses), self._terms.lease_s / 4), misses + 1
            elif isinstance(found, RequestState):
                heard, pause, misses = time.monotonic(), _POLL_S, 0
                if on_event and found.event and found.event != seen:
                    seen = found.event
                    on_event(seen)
            else:
                return self._settled(found) if isinstance(found, Failure) else found
            if time.monotonic() >= deadline:
                return Ended("late", failures.error_from("DEADLINE_EXCEEDED", "", self.url))
            await self._transport.sleep(min(pause, max(0.0, deadline - time.monotonic())))

    async def _find(self, request_id: str) -> Result | Failure | RequestState | Ended | None:
        """What has become of a request: its state while it runs, None where it is unknown; Ended: no answer."""
        try:
            state, _ = await self._ask(request_id, "renew", min(_ASK_S, self._terms.lease_s / 2))
            if state.state == "running":
                return state
            if state.state == "done" and not state.failure:
                return (await self._ask(request_id, "fetch", _FETCH_S))[1]
        except CallFailedError as error:
            trouble = failures.trouble(error.status, error.details)
            if trouble in ("away", "lost"):
                return Ended(trouble, ServerUnavailableError(error.details))
            return await self._ended(error)
        return state.failure

    @contextlib.asynccontextmanager
    async def _cancelling(self, request_id: str) -> AsyncIterator[None]:
        """Cancel the request on the server when the block is left by an error that is none of its calls'."""
        try:
            yield
        except (GeneratorExit, CallFailedError):  # the first: nobody drives this coroutine any more
            raise
        except BaseException:
            await self._cancel_quietly(request_id)
            raise

    @contextlib.asynccontextmanager
    async def _renewing(self, request_id: str, call: Call) -> AsyncIterator[None]:
        """Renew the request's lease beside the block; end the call once no answer came for as long as the lease."""
        heard, begun, silent = time.monotonic(), False, False

        async def renew() -> None:
            nonlocal heard, begun, silent
            try:
                state, _ = await self._ask(request_id, "renew", self._terms.lease_s / 2)
                heard, begun = time.monotonic(), begun or state.state == "running"
            except (CallFailedError, Predict2Error):
                # Before it began, a large input on a slow line may be what keeps the answers back.
                if begun and time.monotonic() - heard > self._terms.lease_s:
                    silent = True
                    call.cancel()

        if not self._tracks:
            yield
            return
        async with self._transport.every(self._terms.lease_s / 3, renew):
            try:
                yield
            except CallFailedError:
                if silent:
                    raise CallFailedError("UNAVAILABLE", "connection closed: no answer") from None
                raise

    async def _cancel_quietly(self, request_id: str) -> None:
        if self._tracks:
            with contextlib.suppress(CallFailedError, Predict2Error):
                await self._ask(request_id, "cancel", _CANCEL_S)

    async def _ask(
        self, request_id: str, action: Action, timeout_s: float
    ) -> tuple[RequestState, Result | None]:
        message = wire.tracking_request(request_id, action)
        try:
            return wire.read_tracking(await self._once("ModelInfer", message, timeout_s))
        except CallFailedError as error:
            if error.status == "DEADLINE_EXCEEDED":  # not the caller's own
                raise CallFailedError("UNAVAILABLE", f"no answer within {timeout_s:g} s") from None
            raise

    async def _once(self, method: str, message: Any, timeout_s: float | None) -> Any:
        """The one response of a call; CallFailedError."""
        call = self._transport.open(method, message, timeout_s)
        try:
            async for response in call:
                return response
        finally:
            await call.end(0.0)
        raise CallFailedError("INTERNAL", "no answer")
