# SPDX-License-Identifier: Apache-2.0
"""The client: one connection to a server, one request at a time."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from predict2_spec.critic import NUM_TRIALS, Judged
from predict2_spec.errors import InvalidRequestError, ServerError, ServerUnavailableError
from predict2_spec.requests import Request, Text2ImageRequest, Text2WorldRequest, Video2WorldRequest
from predict2_spec.results import Event, Failure
from predict2_spec.tensors import GENERATE

from . import media, wire
from .wire import Judgement, Result

DEFAULT_URL = "127.0.0.1:8001"
OnEvent = Callable[[Event], None]

_HOST_AND_PORT = re.compile(r"(?:[^/:\s\[\]]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}")
_LOOPBACK = ("127.", "localhost:", "[::1]:")
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
_PROBE_TIMEOUT_S = 3.0
_PROBE_PAUSE_S = 0.25
_STREAM_END_S = 5.0


class Client:
    """Makes pictures and clips on a server.

    A context manager. Threads may share it: their requests run one after the other.

    Raises:
        InvalidRequestError: `url` isn't host:port.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        if not _HOST_AND_PORT.fullmatch(url):
            raise InvalidRequestError(
                f"url {url!r:.100} must be the host and gRPC port of a server, such as {DEFAULT_URL}"
            )
        self.url = url
        # A machine's http_proxy is not for what runs on the machine itself.
        own = (("grpc.enable_http_proxy", 0),) if url.startswith(_LOOPBACK) else ()
        self._channel = grpc.insecure_channel(url, options=_CHANNEL + own)
        # tritonclient's own stream calls back from a thread of its own, and says nothing when a
        # stream ends without a result; on its generated stub, one loop in the caller's thread
        # sees everything and can be interrupted.
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._busy = threading.Lock()

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
        self._channel.close()

    def is_ready(self) -> bool:
        """Whether a server answers and has loaded all its models."""
        try:
            answer = self._stub.ServerReady(
                service_pb2.ServerReadyRequest(), timeout=_PROBE_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
        return bool(answer.ready)

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return as soon as the server is ready.

        Raises:
            ServerUnavailableError: it isn't after `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_ready():
            if time.monotonic() >= deadline:
                raise ServerUnavailableError(
                    f"no server is ready at {self.url} after {timeout_s:g} s; "
                    "start one with predict2-serve, or name another with --url"
                )
            time.sleep(_PROBE_PAUSE_S)

    def generate(
        self, request: Request, on_event: OnEvent | None = None, timeout_s: float | None = None
    ) -> Result:
        """Run a request to its end.

        Whatever ends the wait early (KeyboardInterrupt, the time limit, an exception of
        `on_event`) also cancels the work on the server.

        Args:
            request: what to make.
            on_event: told of each step, in this thread.
            timeout_s: the longest to wait; None for no limit.

        Raises:
            InvalidRequestError: the server refused the request.
            BlockedError: a guardrail refused the prompt or the result.
            RequestCancelledError: it was cancelled, or took longer than `timeout_s`.
            ServerUnavailableError: no server answers, or it went away.
            ServerError: the server failed.
        """
        with self._exchange():
            if on_event is None:
                message = wire.infer_request(request, request.task)
                return _result(self._call(message, timeout_s))
            return self._stream(request, on_event, timeout_s)

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
        with self._exchange():
            return wire.read_judgement(self._call(message, timeout_s))

    def best_of_n(
        self,
        request: Video2WorldRequest,
        num_generations: int = 2,
        num_trials: int = NUM_TRIALS,
        timeout_s: float | None = None,
    ) -> tuple[Result, tuple[Judged, ...]]:
        """The clip that the critic finds best among several, and the ranking of all.

        Their seeds are the request's and those after it. Raises as `judge`.
        """
        message = wire.best_of_n_request(request, num_generations, num_trials)
        with self._exchange():
            answer = self._call(message, timeout_s)
        return _result(answer), wire.read_ranking(answer)

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """One request at a time; what goes wrong comes out as an error of ours."""
        with self._busy:
            try:
                yield
            except grpc.RpcError as error:
                code = error.code().name
                answered = code == "UNAVAILABLE" and self.is_ready()
                raise wire.error_from(code, error.details(), self.url, answered=answered) from None

    def _call(self, message: Any, timeout_s: float | None) -> Any:
        call = self._stub.ModelInfer.future(message, timeout=timeout_s)
        try:
            return call.result()
        finally:
            call.cancel()  # of no effect once the answer is here

    def _stream(self, request: Request, on_event: OnEvent, timeout_s: float | None) -> Result:
        message = wire.infer_request(request, GENERATE.name)
        call = self._stub.ModelStreamInfer(iter((message,)), timeout=timeout_s)
        try:
            for response in call:
                if response.error_message:
                    raise wire.error_from("UNKNOWN", response.error_message, self.url)
                answer = wire.read_response(response.infer_response)
                if isinstance(answer, Result):
                    _let_end(call)
                    return answer
                if isinstance(answer, Failure):
                    _let_end(call)
                    raise wire.failure_error(answer, self.url)
                on_event(answer)
        finally:
            call.cancel()
        raise ServerError("the server ended the stream without a result")

    def text2image(
        self,
        prompt: str,
        *,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result:
        """A picture from text; `fields` are those of Text2ImageRequest."""
        return self.generate(Text2ImageRequest(prompt=prompt, **fields), on_event, timeout_s)

    def text2world(
        self,
        prompt: str,
        *,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result:
        """A clip from text; `fields` are those of Text2WorldRequest."""
        return self.generate(Text2WorldRequest(prompt=prompt, **fields), on_event, timeout_s)

    def video2world(
        self,
        prompt: str,
        input_path: media.AnyPath | None = None,
        *,
        on_event: OnEvent | None = None,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result:
        """A clip that goes on from the picture or clip in `input_path`, `image` or `video`.

        `fields` are those of Video2WorldRequest.
        """
        if input_path is not None:
            fields = {**fields, **media.read_input(input_path)}
        return self.generate(Video2WorldRequest(prompt=prompt, **fields), on_event, timeout_s)


def _result(answer: Any) -> Result:
    result = wire.read_response(answer)
    if not isinstance(result, Result):
        raise ServerError("the server answered with an event, not a result")
    return result


def _let_end(call: Any) -> None:
    # The server closes the stream right after the result. Cancelling before it has would make
    # it count a finished request as cancelled; waiting for ever could lose the result.
    with contextlib.suppress(grpc.FutureTimeoutError, grpc.FutureCancelledError):
        call.exception(timeout=_STREAM_END_S)
