# SPDX-License-Identifier: Apache-2.0
"""The client for plain programs; `AsyncClient` is its twin for asyncio."""

from pathlib import Path
from types import TracebackType

from predict2_spec.critic import NUM_TRIALS, Judged
from predict2_spec.requests import Request, Video2WorldRequest
from predict2_spec.tracking import RequestState

from . import wire
from .access import make_access
from .address import DEFAULT_URL, check_url
from .exchange import DEFAULT_LEASE_S, Exchange, OnEvent, OnRetry, Terms
from .tasks import TaskCalls
from .transport import BlockingTransport, run_blocking
from .wire import Judgement, Result


class Client(TaskCalls[Result]):
    """Makes pictures and clips on a server.

    A context manager. Threads may share it.

    Args:
        url: host:port of the server's gRPC.
        lease_s: how long the server works on for a client it no longer hears of, 2 to 3600 whole seconds.
        retry_for_s: how long to try again where the server is busy or away; 0: not at all.
        priority: 2 for work that can wait until no other does; 0: the server's default.
        on_retry: told why a request is sent again, and after how many seconds.
        tls: encrypt, and check that the server is who it says.
        ca_file: PEM of the authorities to trust in the place of the public ones; it means `tls`.
        token: says who this caller is to a proxy before the server; only with TLS, or on this machine.

    Raises:
        InvalidRequestError: `url` isn't host:port, a value is outside its limits, or the token can't be sent so.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        lease_s: int = DEFAULT_LEASE_S,
        retry_for_s: float = 0.0,
        priority: int = 0,
        on_retry: OnRetry | None = None,
        tls: bool = False,
        ca_file: str | Path | None = None,
        token: str = "",
    ) -> None:
        terms = Terms(lease_s, retry_for_s, priority, on_retry)
        self.url = check_url(url)
        access = make_access(url, tls, ca_file, token)
        self._exchange = Exchange(url, BlockingTransport(url, access), terms)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; what still runs is cancelled."""
        run_blocking(self._exchange.close())

    def is_ready(self) -> bool:
        """Whether a server answers and has loaded all its models.

        Raises:
            InvalidRequestError: the proxy before it knows no such token.
        """
        return run_blocking(self._exchange.is_ready())

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return as soon as the server is ready.

        Raises:
            ServerUnavailableError: it isn't after `timeout_s` seconds.
        """
        run_blocking(self._exchange.wait_until_ready(timeout_s))

    def generate(
        self,
        request: Request,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        *,
        request_id: str = "",
    ) -> Result:
        """Run a request to its end.

        Whatever ends the wait early (KeyboardInterrupt, the time limit, an exception of
        `on_event`) also cancels the work on the server. A connection that breaks doesn't: the result
        is asked for by the request's id.

        Args:
            request: what to make.
            on_event: told of each step, in this thread.
            timeout_s: the longest it may take, waiting for its turn included; None for no limit.
            request_id: 8 to 128 letters, digits, '.', '_' or '-', hard to guess; a UUID unless given. The
                result of an earlier request of this id and the same content comes back at once.

        Raises:
            InvalidRequestError: the server refused the request.
            BlockedError: a guardrail refused the prompt or the result.
            RequestCancelledError: it was cancelled.
            RequestExpiredError: it took longer than `timeout_s`, or than the server allows.
            BusyError: the server has as much to do as it takes on.
            ServerUnavailableError: no server answers, or it went away and didn't come back.
            ServerError: the server failed.
        """
        return run_blocking(self._exchange.generate(request, on_event, timeout_s, request_id))

    def judge(
        self,
        clip: bytes,
        num_trials: int = NUM_TRIALS,
        seed: int = 0,
        timeout_s: float | None = None,
    ) -> Judgement:
        """Ask the critic whether a clip, an encoded mp4, has anomalies.

        Args:
            clip: what it looks at.
            num_trials: how many times it is asked.
            seed: of its answers.
            timeout_s: the longest to wait; None for no limit.

        Raises:
            Predict2Error: as `generate`; ServerUnavailableError also where the server has no critic.
        """
        message = wire.judge_request(clip, num_trials, seed)
        return run_blocking(self._exchange.judge(message, timeout_s))

    def best_of_n(
        self,
        request: Video2WorldRequest,
        num_generations: int = 2,
        num_trials: int = NUM_TRIALS,
        timeout_s: float | None = None,
        *,
        request_id: str = "",
    ) -> tuple[Result, tuple[Judged, ...]]:
        """The clip that the critic finds best among several, and the ranking of all.

        Their seeds are the request's and those after it. Raises as `generate`.
        """
        message = wire.best_of_n_request(request, num_generations, num_trials)
        result = run_blocking(self._exchange.run(message, None, timeout_s, request_id, more=True))
        return result, result.ranking

    def fetch(
        self, request_id: str, on_event: OnEvent | None = None, timeout_s: float | None = None
    ) -> Result:
        """The result of a request sent before, by this program or another; waits while it is running.

        Leaving early doesn't cancel the work. Frames and rankings aren't kept.

        Raises:
            InvalidRequestError: the server knows no such request, or its result is kept no longer.
            ServerUnavailableError: no server answers, or the work isn't finished after `timeout_s` seconds.
            Predict2Error: as `generate`, where the request failed.
        """
        return run_blocking(self._exchange.fetch(request_id, on_event, timeout_s))

    def look(self, request_id: str) -> RequestState:
        """How far a request is.

        Raises:
            ServerUnavailableError: no server answers, or it follows no requests.
        """
        return run_blocking(self._exchange.ask(request_id, "look"))

    def cancel(self, request_id: str) -> RequestState:
        """Stop a request within a solver step, whoever sent it; one that is still to begin, too.

        Returns:
            How far it was. One that ended before stays as it is.

        Raises:
            ServerUnavailableError: no server answers, or it follows no requests.
        """
        return run_blocking(self._exchange.ask(request_id, "cancel"))
