# SPDX-License-Identifier: Apache-2.0
"""The client for asyncio programs: `Client` with coroutines, and where tasks may share it."""

from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

from predict2_spec.critic import NUM_TRIALS, Judged
from predict2_spec.requests import Request, Video2WorldRequest
from predict2_spec.tracking import RequestState

from . import wire
from .access import make_access
from .address import DEFAULT_URL, check_url
from .exchange import DEFAULT_LEASE_S, Exchange, OnEvent, OnRetry, Terms
from .tasks import TaskCalls
from .transport import AsyncioTransport
from .wire import Judgement, Result


class AsyncClient(TaskCalls[Coroutine[Any, Any, Result]]):
    """Makes pictures and clips on a server, on one event loop.

    An asynchronous context manager, which opens the connection. Its methods, what they take and raise are those of
    `Client`. A task that is cancelled while it waits cancels the work on the server. `on_event` and `on_retry` are
    plain functions, called on the loop.
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
        self.url = check_url(url)
        self._terms = Terms(lease_s, retry_for_s, priority, on_retry)
        self._access = make_access(url, tls, ca_file, token)
        self._opened: Exchange | None = None

    async def __aenter__(self) -> "AsyncClient":
        # A connection belongs to the loop it is made on.
        self._opened = Exchange(self.url, AsyncioTransport(self.url, self._access), self._terms)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _exchange(self) -> Exchange:
        if self._opened is None:
            raise RuntimeError("AsyncClient is used inside `async with` only")
        return self._opened

    async def close(self) -> None:
        """Close the connection; what still runs is cancelled."""
        await self._exchange.close()

    async def is_ready(self) -> bool:
        """As `Client.is_ready`."""
        return await self._exchange.is_ready()

    async def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """As `Client.wait_until_ready`."""
        await self._exchange.wait_until_ready(timeout_s)

    async def generate(
        self,
        request: Request,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        *,
        request_id: str = "",
    ) -> Result:
        """As `Client.generate`."""
        return await self._exchange.generate(request, on_event, timeout_s, request_id)

    async def judge(
        self,
        clip: bytes,
        num_trials: int = NUM_TRIALS,
        seed: int = 0,
        timeout_s: float | None = None,
    ) -> Judgement:
        """As `Client.judge`."""
        return await self._exchange.judge(wire.judge_request(clip, num_trials, seed), timeout_s)

    async def best_of_n(
        self,
        request: Video2WorldRequest,
        num_generations: int = 2,
        num_trials: int = NUM_TRIALS,
        timeout_s: float | None = None,
        *,
        request_id: str = "",
    ) -> tuple[Result, tuple[Judged, ...]]:
        """As `Client.best_of_n`."""
        message = wire.best_of_n_request(request, num_generations, num_trials)
        result = await self._exchange.run(message, None, timeout_s, request_id, more=True)
        return result, result.ranking

    async def fetch(
        self, request_id: str, on_event: OnEvent | None = None, timeout_s: float | None = None
    ) -> Result:
        """As `Client.fetch`."""
        return await self._exchange.fetch(request_id, on_event, timeout_s)

    async def look(self, request_id: str) -> RequestState:
        """As `Client.look`."""
        return await self._exchange.ask(request_id, "look")

    async def cancel(self, request_id: str) -> RequestState:
        """As `Client.cancel`."""
        return await self._exchange.ask(request_id, "cancel")
