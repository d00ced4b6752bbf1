# SPDX-License-Identifier: Apache-2.0
"""A gRPC connection to Triton, blocking or on asyncio's loop, behind the same few coroutines.

`exchange.py` is written once, as coroutines over a Transport. Those of BlockingTransport block instead of suspending,
so that `run_blocking` can drive them in the caller's thread.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2_grpc

from .access import OPEN, Access, is_local

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]
Headers = tuple[tuple[str, str], ...]

STREAM = "ModelStreamInfer"  # the one method of those used that answers more than once
_CHANNEL = (
    ("grpc.max_send_message_length", -1),  # no limit: requests and results hold whole files
    ("grpc.max_receive_message_length", -1),
    # A host that vanishes without a word is noticed. Triton takes pings less than five minutes
    # apart for abuse and closes the connection.
    ("grpc.keepalive_time_ms", 330_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own pauses between attempts grow to two minutes: too long to find a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class CallFailedError(Exception):
    """A call ended with a gRPC status that isn't OK."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"{status}: {details}")
        self.status = status  # its name
        self.details = details


class Call(Protocol):
    """A call under way: an asynchronous iterator over its responses."""

    def __aiter__(self) -> "Call": ...

    async def __anext__(self) -> Any:
        """The next response; raises CallFailedError."""

    async def end(self, seconds: float) -> None:
        """Wait for the call's end, and cancel it if that takes more than so many seconds."""

    def cancel(self) -> None:
        """End it now."""


class Transport(Protocol):
    """What an Exchange needs of a connection, of time and of other threads or tasks."""

    def open(self, method: str, message: Any, timeout_s: float | None) -> Call:
        """Begin a call of Triton's service."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def every(self, seconds: float, work: Work) -> contextlib.AbstractAsyncContextManager[None]:
        """Run `work`, which raises nothing, again and again beside the block."""

    async def close(self) -> None:
        """Close the connection; calls under way fail."""


def run_blocking(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine over a BlockingTransport, which never suspends."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("a coroutine over a blocking transport suspended")


def _options(url: str) -> list[tuple[str, int]]:
    # A machine's http_proxy is not for what runs on the machine itself.
    own = [("grpc.enable_http_proxy", 0)] if is_local(url) else []
    return [*_CHANNEL, *own]


def _headers(access: Access, message: Any) -> Headers:
    return access.headers(getattr(message, "id", ""))  # not all messages are about a request


def _failed(error: Any) -> CallFailedError:
    return CallFailedError(error.code().name, error.details() or "")


_WAKE_S = 0.2
_END = object()


def _closed() -> CallFailedError:
    return CallFailedError("CANCELLED", "the call was cancelled or the client closed")


def _unreadable(error: Exception) -> CallFailedError:
    """The end of a call whose reader failed: whoever waits must hear of it, or waits for ever."""
    return CallFailedError("INTERNAL", f"the call ended without a result to read ({error!r:.200})")


def _unwrapped(response: Any) -> Any:
    """The ModelInferResponse in a message of a stream; an error there has no status."""
    if response.error_message:
        raise CallFailedError("UNKNOWN", response.error_message)
    return response.infer_response


class _BlockingCall:
    """A call whose responses a thread of its own reads, so that Ctrl-C interrupts the waiting and nothing else."""

    def __init__(
        self, stub: Any, method: str, message: Any, timeout_s: float | None, headers: Headers
    ) -> None:
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call: Any = None
        try:
            if method == STREAM:
                self._call = getattr(stub, method)(
                    iter((message,)), timeout=timeout_s, metadata=headers
                )
                threading.Thread(target=self._read_stream, daemon=True).start()
            else:
                self._call = getattr(stub, method).future(
                    message, timeout=timeout_s, metadata=headers
                )
                self._call.add_done_callback(self._read_answer)
        except ValueError:  # of a closed channel
            self._answers.put(_closed())

    def _read_stream(self) -> None:
        last: Any = _END
        try:
            for response in self._call:
                self._answers.put(_unwrapped(response))
        except grpc.RpcError as error:
            last = _failed(error)
        except CallFailedError as error:
            last = error
        except Exception as error:  # noqa: BLE001 - whatever it is
            last = _unreadable(error)
        self._answers.put(last)

    def _read_answer(self, call: Any) -> None:
        try:
            self._answers.put(call.result())
            self._answers.put(_END)
        except grpc.RpcError as error:
            self._answers.put(_failed(error))
        except grpc.FutureCancelledError:
            self._answers.put(_closed())
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._answers.put(_unreadable(error))

    def __aiter__(self) -> "_BlockingCall":
        return self

    async def __anext__(self) -> Any:
        answer = self._get()
        if _is_last(answer):
            self._answers.put(answer)  # for whoever asks again
        return _next(answer)

    def _get(self) -> Any:
        while True:  # what interrupts a program may not wake a thread that waits on a lock
            with contextlib.suppress(queue.Empty):
                return self._answers.get(timeout=_WAKE_S)

    async def end(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while not _is_last(self._answers.get(timeout=max(0.0, deadline - time.monotonic()))):
                pass
        self.cancel()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()  # of no effect once it has ended


def _is_last(answer: Any) -> bool:
    return answer is _END or isinstance(answer, CallFailedError)


def _next(answer: Any) -> Any:
    if answer is _END:
        raise StopAsyncIteration
    if isinstance(answer, CallFailedError):
        raise answer
    return answer


class BlockingTransport:
    """A connection for threads."""

    def __init__(self, url: str, access: Access = OPEN) -> None:
        self._access = access
        credentials, options = access.credentials(), _options(url)
        self._channel = (
            grpc.secure_channel(url, credentials, options=options)
            if credentials
            else grpc.insecure_channel(url, options=options)
        )
        # tritonclient's own stream calls back from a thread of its own, and says nothing when a
        # stream ends without a result; on its generated stub, one loop sees everything.
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def open(self, method: str, message: Any, timeout_s: float | None) -> Call:
        """Begin a call."""
        return _BlockingCall(
            self._stub, method, message, timeout_s, _headers(self._access, message)
        )

    async def sleep(self, seconds: float) -> None:
        """Wait, and block."""
        time.sleep(seconds)

    @contextlib.asynccontextmanager
    async def every(self, seconds: float, work: Work) -> AsyncIterator[None]:
        """In a thread beside the block."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(seconds):
                run_blocking(work())

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            over.set()

    async def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class _AsyncioCall:
    """A call whose responses a task of its own reads, so that cancelling the waiting task cancels nothing else."""

    def __init__(
        self, stub: Any, method: str, message: Any, timeout_s: float | None, headers: Headers
    ) -> None:
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._call: Any = None
        try:
            if method == STREAM:
                self._call = getattr(stub, method)(
                    iter((message,)), timeout=timeout_s, metadata=headers
                )
            else:
                self._call = getattr(stub, method)(message, timeout=timeout_s, metadata=headers)
        except grpc.aio.UsageError:  # of a closed channel
            self._answers.put_nowait(_closed())
        else:
            self._reader = asyncio.create_task(self._read(method == STREAM))

    async def _read(self, stream: bool) -> None:
        last: Any = _END
        try:
            if stream:
                async for response in self._call:
                    self._answers.put_nowait(_unwrapped(response))
            else:
                self._answers.put_nowait(await self._call)
        except grpc.RpcError as error:
            last = _failed(error)
        except CallFailedError as error:
            last = error
        except (asyncio.CancelledError, grpc.aio.UsageError):
            last = _closed()
        except Exception as error:  # noqa: BLE001 - whatever it is
            last = _unreadable(error)
        self._answers.put_nowait(last)

    def __aiter__(self) -> "_AsyncioCall":
        return self

    async def __anext__(self) -> Any:
        answer = await self._answers.get()
        if _is_last(answer):
            self._answers.put_nowait(answer)
        return _next(answer)

    async def end(self, seconds: float) -> None:
        async def rest() -> None:
            while not _is_last(await self._answers.get()):
                pass

        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rest(), seconds)
        finally:
            self.cancel()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()


class AsyncioTransport:
    """A connection for the tasks of one event loop."""

    def __init__(self, url: str, access: Access = OPEN) -> None:
        self._access = access
        credentials, options = access.credentials(), _options(url)
        self._channel = (
            grpc.aio.secure_channel(url, credentials, options=options)
            if credentials
            else grpc.aio.insecure_channel(url, options=options)
        )
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def open(self, method: str, message: Any, timeout_s: float | None) -> Call:
        """Begin a call."""
        return _AsyncioCall(self._stub, method, message, timeout_s, _headers(self._access, message))

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    @contextlib.asynccontextmanager
    async def every(self, seconds: float, work: Work) -> AsyncIterator[None]:
        """In a task beside the block."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(seconds)
                await work()

        task = asyncio.create_task(beat())
        try:
            yield
        finally:
            task.cancel()

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()
