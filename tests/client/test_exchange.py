# SPDX-License-Identifier: Apache-2.0
"""Requests through faults, by both faces: what is sent, what is sent again, and what is asked for instead."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from predict2_client import AsyncClient, Client, exchange, patience, transport
from predict2_spec.admission import IS_RUNNING
from predict2_spec.errors import (
    BlockedError,
    BusyError,
    InvalidRequestError,
    RequestCancelledError,
    RequestExpiredError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.requests import Text2ImageRequest, Video2WorldRequest
from predict2_spec.results import Event, Failure
from predict2_spec.tracking import RequestState

REQUEST = Text2ImageRequest(prompt="a ball")
RUNNING = RequestState("running", Event("denoise", 3, 9, 1.0))
DONE, UNKNOWN = RequestState("done", kept_s=60.0), RequestState("unknown")
CLOSED = "Stream removed (Socket closed)"  # as gRPC says of a connection that broke
FULL = "[request id: 1] Exceeds maximum queue size"


def ignore(event):
    pass


MODES = pytest.mark.parametrize("on_event", [None, ignore], ids=["unary", "stream"])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses that a test can wait for."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(exchange, "_POLL_S", 0.01)


@pytest.fixture(params=["threads", "asyncio"])
def do(request, server):
    """do(method, ..., terms={...}): one call of a client of either face."""

    def do(method, *arguments, terms=None, **keywords):
        if request.param == "threads":
            with Client(server.url, **(terms or {})) as client:
                return getattr(client, method)(*arguments, **keywords)

        async def run():
            async with AsyncClient(server.url, **(terms or {})) as client:
                return await getattr(client, method)(*arguments, **keywords)

        return asyncio.run(run())

    return do


@pytest.fixture
def fail(server, respond):
    """fail(status, words, count): the first calls end with this gRPC status, those after them with a result."""

    def fail(status, words, count=1):
        left = [None] * count

        def unary(request, context):
            if left:
                left.pop()
                context.abort(grpc.StatusCode[status], words)
            return respond.result()

        server.unary = unary
        server.stream = lambda request, context: iter((unary(request, context),))

    return fail


@pytest.fixture
def knows(server, respond):
    """knows(state, ...): what `tracking` says, the last for ever; with `done` it has the result too.

    Before anything was sent, it knows nothing.
    """

    def knows(*states):
        left = list(states)

        def tracking(request_id, action):
            if not server.requests or action == "look":
                return respond.state(UNKNOWN)
            state = left.pop(0) if len(left) > 1 else left[0]
            fetched = action == "fetch" and state.state == "done"
            return respond.state(state, respond.result(b"kept") if fetched else None)

        server.tracking = tracking

    return knows


def parameters(request):
    return {
        name: value.WhichOneof("parameter_choice") for name, value in request.parameters.items()
    }


def actions(server):
    return [action for _, action in server.asked]


@MODES
def test_request_carries_its_id_lease_priority_and_time_limit(do, server, on_event):
    terms = {"priority": 2, "lease_s": 20}
    do("generate", REQUEST, on_event, 60.0, request_id="my-request", terms=terms)
    [request] = server.requests
    assert request.id == "my-request"
    assert request.parameters["lease_s"].int64_param == 20
    assert request.parameters["priority"].uint64_param == 2
    assert request.parameters["timeout"].int64_param == pytest.approx(60e6, rel=0.1)


def test_request_says_nothing_that_nobody_asked_for_but_has_an_id_of_its_own(do, server):
    do("generate", REQUEST)
    do("generate", REQUEST)
    first, second = server.requests
    assert len({first.id, second.id}) == 2
    assert len(first.id) == 32
    assert parameters(first) == {"lease_s": "int64_param", "lease_waits": "bool_param"}


@pytest.mark.parametrize("request_id", ["short", "with space", "../../etc/passwd", "a" * 129])
def test_id_that_can_not_be_one_is_refused_before_anything_is_sent(do, server, request_id):
    with pytest.raises(InvalidRequestError, match="request id"):
        do("generate", REQUEST, request_id=request_id)
    for method in ("fetch", "look", "cancel"):
        with pytest.raises(InvalidRequestError, match="request id"):
            do(method, request_id)
    assert server.requests == server.asked == []


@pytest.mark.parametrize(
    "terms",
    [{"lease_s": 1}, {"lease_s": 3601}, {"lease_s": 2.5}, {"lease_s": "30"}, {"retry_for_s": -1.0}],
)
def test_terms_outside_their_limits_are_refused(terms):
    for face in (Client, AsyncClient):
        with pytest.raises(InvalidRequestError, match=next(iter(terms))):
            face("127.0.0.1:1", **terms)


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan")])
def test_time_limit_that_is_none_is_refused_before_anything_is_sent(do, server, timeout_s):
    with pytest.raises(InvalidRequestError, match=f"timeout_s {timeout_s} must be 0 or more"):
        do("generate", REQUEST, timeout_s=timeout_s)
    assert server.requests == server.asked == []


@pytest.mark.parametrize("timeout_s", [1e13, 1e300, float("inf")])
def test_time_limit_beyond_all_counting_is_none(do, server, timeout_s):
    assert do("generate", REQUEST, timeout_s=timeout_s).media == b"picture"
    assert "timeout" not in parameters(server.requests[0])


@MODES
def test_older_server_without_tracking_gets_no_lease_and_answers(do, server, on_event):
    server.tracking = None
    assert do("generate", REQUEST, on_event).media == b"picture"
    assert parameters(server.requests[0]) == {}


@MODES
def test_result_arrives_though_the_connection_broke(do, server, fail, knows, on_event):
    fail("UNAVAILABLE", CLOSED)
    knows(RUNNING, RUNNING, DONE)
    seen = []
    result = do("generate", REQUEST, on_event and seen.append, request_id="my-request")
    assert result.media == b"kept"
    assert len(server.requests) == 1
    assert seen == ([RUNNING.event] if on_event else [])
    assert set(server.asked[1:]) == {("my-request", "renew"), ("my-request", "fetch")}


def test_refusal_arrives_though_the_connection_broke(do, fail, knows):
    failure = Failure("INVALID_ARGUMENT", "blocked: guardrail content refuses the clip")
    fail("UNAVAILABLE", CLOSED)
    knows(RUNNING, RequestState("failed", failure=failure))
    with pytest.raises(BlockedError, match="refuses the clip"):
        do("generate", REQUEST)


@MODES
def test_request_that_never_arrived_is_sent_again_by_the_same_id(do, server, fail, knows, on_event):
    fail("UNAVAILABLE", CLOSED)
    knows(UNKNOWN)
    assert do("generate", REQUEST, on_event).media == b"picture"
    first, second = server.requests
    assert first.id == second.id


def test_request_that_may_be_what_breaks_the_server_is_not_sent_for_ever(do, server, fail, knows):
    fail("UNAVAILABLE", CLOSED, count=100)
    knows(UNKNOWN)
    with pytest.raises(ServerUnavailableError, match="Socket closed"):
        do("generate", REQUEST)
    assert len(server.requests) == 1 + patience.RESENDS


def test_request_that_runs_when_it_is_sent_again_is_waited_for(do, server, respond, knows):
    def unary(request, context):
        if len(server.requests) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, CLOSED)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a request with id x {IS_RUNNING}")

    server.unary = unary
    knows(UNKNOWN, RUNNING, DONE)
    assert do("generate", REQUEST).media == b"kept"
    assert len(server.requests) == 2


def test_result_of_another_request_of_the_same_id_is_not_taken(do, server, knows):
    def unary(request, context):
        if len(server.requests) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, FULL)
        words = "request id my-request was used for a request of other content"
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)

    server.unary = unary
    knows(DONE)
    with pytest.raises(InvalidRequestError, match="other content"):
        do("generate", REQUEST, request_id="my-request", terms={"retry_for_s": 60.0})


def test_answer_that_cannot_be_read_ends_the_wait(do, monkeypatch):
    monkeypatch.setattr(transport, "_unwrapped", lambda response: response.no_such_field)
    with pytest.raises(ServerError, match=r"without a result to read .*no_such_field"):
        do("generate", REQUEST, ignore)


def test_refused_request_is_not_sent_again(do, server, fail, knows):
    fail("INVALID_ARGUMENT", "a request with id x is running")
    knows(DONE)
    with pytest.raises(InvalidRequestError, match="is running"):
        do("generate", REQUEST, terms={"retry_for_s": 60.0})
    assert len(server.requests) == 1


def test_without_tracking_a_lost_request_is_sent_again_only_if_asked_for(do, server, fail):
    server.tracking = None
    fail("UNAVAILABLE", CLOSED)
    with pytest.raises(ServerUnavailableError, match="Socket closed"):
        do("generate", REQUEST)
    fail("UNAVAILABLE", CLOSED)
    assert do("generate", REQUEST, terms={"retry_for_s": 60.0}).media == b"picture"


def test_server_that_does_not_come_back_is_told_with_how_to_fetch(do, server, fail):
    fail("UNAVAILABLE", CLOSED)
    track = server._track

    def gone(request, context):
        if server.requests:
            context.abort(grpc.StatusCode.UNAVAILABLE, CLOSED)
        return track(request, context)

    server._track = gone
    began = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="predict2 fetch my-request"):
        do("generate", REQUEST, request_id="my-request", terms={"lease_s": 2})
    assert time.monotonic() - began >= 2


@pytest.mark.parametrize("wants", ["frames", "ranking"])
def test_what_tracking_does_not_keep_is_asked_for_by_sending_again(do, server, fail, knows, wants):
    fail("UNAVAILABLE", CLOSED)
    knows(DONE)
    if wants == "frames":
        result = do("generate", Text2ImageRequest(prompt="a ball", return_frames=True))
    else:
        result, _ = do("best_of_n", Video2WorldRequest(prompt="on", image=b"png"))
    assert result.media == b"picture"
    first, second = server.requests
    assert first.id == second.id


@MODES
@pytest.mark.parametrize("as_data", [False, True])
def test_busy_server_is_told_at_once(do, server, respond, fail, on_event, as_data):
    fail("UNAVAILABLE", FULL, count=100)
    if as_data:  # of a stream, without a status
        server.stream = lambda request, context: iter(("Exceeds maximum queue size",))
    with pytest.raises(BusyError, match="--retry-for"):
        do("generate", REQUEST, on_event)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "words", [FULL, "unavailable: the server is stopping", "failed to connect to all addresses"]
)
def test_server_that_takes_nothing_now_is_asked_again_for_as_long_as_allowed(
    do, server, fail, words
):
    fail("UNAVAILABLE", words, count=4)
    told = []
    terms = {"retry_for_s": 60.0, "on_retry": lambda error, pause: told.append((error, pause))}
    assert do("generate", REQUEST, terms=terms).media == b"picture"
    assert len(server.requests) == 5
    assert all(isinstance(error, ServerUnavailableError) for error, _ in told)
    assert [0 < pause < 1 for _, pause in told] == [True] * 4
    assert len({request.id for request in server.requests}) == 1


def test_trying_again_ends_with_its_time(do, server, fail):
    fail("UNAVAILABLE", FULL, count=1000)
    began = time.monotonic()
    with pytest.raises(BusyError):
        do("generate", REQUEST, terms={"retry_for_s": 0.5})
    assert time.monotonic() - began < 10
    assert len(server.requests) > 2


def test_trying_again_ends_with_the_time_limit(do, server, fail):
    fail("UNAVAILABLE", FULL, count=1000)
    with pytest.raises(BusyError):
        do("generate", REQUEST, timeout_s=0.5, terms={"retry_for_s": 600.0})


def test_lease_is_renewed_while_somebody_waits(do, server, respond):
    def unary(request, context):
        deadline = time.monotonic() + 10
        while actions(server).count("renew") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        return respond.result()

    server.unary = unary
    do("generate", REQUEST, request_id="my-request", terms={"lease_s": 2})
    asked = len(server.asked)
    assert server.asked == [("my-request", "look"), *[("my-request", "renew")] * (asked - 1)]
    assert asked >= 3
    time.sleep(1)
    assert len(server.asked) == asked


def test_renewing_ends_with_the_request_though_the_client_stays_open(server):
    async def run():
        async with AsyncClient(server.url, lease_s=2) as client:
            await client.generate(REQUEST)
            await asyncio.sleep(1)

    with Client(server.url, lease_s=2) as client:
        client.generate(REQUEST)
        time.sleep(1)  # a renewal would have come after two thirds of it
    asyncio.run(run())
    assert "renew" not in actions(server)


@MODES
def test_silent_server_is_not_waited_for_longer_than_the_lease(do, server, respond, on_event):
    """As a host behind a broken line, which says nothing at all."""
    over = threading.Event()

    def tracking(request_id, action):
        if action == "look":
            return respond.state(UNKNOWN)
        if len(server.asked) > 2:  # it was said once that it runs
            over.wait(20)
        return respond.state(RUNNING)

    def unary(request, context):
        over.wait(20)
        return respond.result()

    server.tracking, server.unary = tracking, unary
    server.stream = lambda request, context: iter((unary(request, context),))
    try:
        with pytest.raises(ServerUnavailableError, match="predict2 fetch"):
            do("generate", REQUEST, on_event, terms={"lease_s": 2})
    finally:
        over.set()


def test_upload_over_a_slow_line_is_not_taken_for_a_silent_server(do, server, respond):
    """While a large input is on its way, answers about leases may be held up behind it."""

    def tracking(request_id, action):
        if action != "look":
            server.ended_early.wait(1.5)
        return respond.state(UNKNOWN)

    def unary(request, context):
        time.sleep(4.5)
        return respond.result()

    server.tracking, server.unary = tracking, unary
    assert do("generate", REQUEST, terms={"lease_s": 2}).media == b"picture"
    assert len(server.requests) == 1


def test_critic_is_asked_again_where_it_was_never_asked(do, server, respond):
    answers = [CLOSED, "failed to connect to all addresses"]

    def critic(request, context):
        if answers:
            context.abort(grpc.StatusCode.UNAVAILABLE, answers.pop())
        return respond.judgement()

    server.critic = critic
    with pytest.raises(ServerUnavailableError):
        do("judge", b"mp4")
    answers.append("failed to connect to all addresses")
    assert do("judge", b"mp4", terms={"retry_for_s": 60.0}).score == 1.0


@MODES
def test_time_limit_is_told_through_tracking(do, server, respond, on_event):
    server.unary = lambda request, context: server.ended_early.wait(10) or respond.result()
    server.stream = lambda request, context: iter((server.unary(request, context),))
    with pytest.raises(RequestExpiredError, match="time limit"):
        do("generate", REQUEST, on_event, 0.2, request_id="my-request")
    assert ("my-request", "cancel") in server.asked


def test_server_that_ends_late_requests_itself_has_the_word(do, server, respond):
    answers = (respond.failure("CANCELLED", "expired: the request's time limit of 1 s passed"),)
    server.stream = lambda request, context: iter(answers)
    with pytest.raises(RequestExpiredError, match=r"^the request's time limit of 1 s passed$"):
        do("generate", REQUEST, ignore, 1.0)


def test_fetch_waits_for_what_is_running(do, server, knows):
    server.requests.append(None)  # another program's
    knows(RUNNING, RUNNING, DONE)
    seen = []
    assert do("fetch", "my-request", seen.append).media == b"kept"
    assert seen == [RUNNING.event]
    assert "cancel" not in actions(server)


@pytest.mark.parametrize(
    ("state", "error", "words"),
    [
        (UNKNOWN, InvalidRequestError, "knows no request my-request"),
        (RequestState("failed", failure=Failure("INTERNAL", "no")), Exception, "no"),
        (RequestState("done", failure=Failure("NOT_FOUND", "not kept")), Exception, "not kept"),
        (RUNNING, ServerUnavailableError, r"isn't finished after 0\.2 s"),
    ],
)
def test_fetch_says_why_there_is_nothing(do, server, knows, state, error, words):
    server.requests.append(None)
    knows(state)
    with pytest.raises(error, match=words):
        do("fetch", "my-request", timeout_s=0.2)


@pytest.mark.parametrize("method", ["fetch", "look", "cancel"])
def test_older_server_can_not_be_asked_about_requests(do, server, method):
    server.tracking = None
    with pytest.raises(ServerUnavailableError, match="unknown model"):
        do(method, "my-request")


def test_look_and_cancel_tell_how_far_a_request_is(do, server, respond):
    server.tracking = lambda request_id, action: respond.state(RUNNING)
    assert do("look", "my-request") == RUNNING
    assert do("cancel", "my-request") == RUNNING
    assert actions(server) == ["look", "cancel"]


def wait_for_request(server):
    deadline = time.monotonic() + 10
    while not server.requests:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def works(server, respond):
    """A server that works until somebody cancels."""

    def stream(request, context):
        yield respond.event()
        server.ended_early.wait(10)
        yield respond.failure("CANCELLED", "cancelled")

    def unary(request, context):
        server.ended_early.wait(10)
        context.abort(grpc.StatusCode.CANCELLED, "cancelled")

    server.stream, server.unary = stream, unary


@MODES
def test_closing_a_client_cancels_what_runs(server, works, on_event):
    client = Client(server.url)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(client.generate, REQUEST, on_event, request_id="my-request")
        wait_for_request(server)
        client.close()
        with pytest.raises(RequestCancelledError):
            running.result(10)
    assert ("my-request", "cancel") in server.asked


@MODES
def test_closing_an_async_client_cancels_what_runs(server, works, on_event):
    async def run():
        async with AsyncClient(server.url) as client:
            running = asyncio.create_task(
                client.generate(REQUEST, on_event, request_id="my-request")
            )
            await asyncio.to_thread(wait_for_request, server)
            await client.close()
            with pytest.raises(RequestCancelledError):
                await running

    asyncio.run(run())
    assert ("my-request", "cancel") in server.asked


def test_closed_client_says_that_it_is(server):
    client = Client(server.url)
    client.close()
    with pytest.raises(RequestCancelledError, match="client closed"):
        client.generate(REQUEST)

    async def run():
        async with AsyncClient(server.url) as client:
            await client.close()
            with pytest.raises(RequestCancelledError, match="client closed"):
                await client.generate(REQUEST)

    asyncio.run(run())
    assert server.requests == []


@MODES
def test_cancelled_task_cancels_on_the_server(server, works, on_event):
    async def run():
        async with AsyncClient(server.url) as client:
            running = asyncio.create_task(
                client.generate(REQUEST, on_event, request_id="my-request")
            )
            await asyncio.to_thread(wait_for_request, server)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            return await client.is_ready()

    assert asyncio.run(run())
    assert ("my-request", "cancel") in server.asked


@MODES
def test_cancelled_task_ends_the_call_where_a_server_does_not_track(server, works, on_event):
    server.tracking = None

    async def run():
        async with AsyncClient(server.url) as client:
            running = asyncio.create_task(client.generate(REQUEST, on_event))
            await asyncio.to_thread(wait_for_request, server)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await asyncio.to_thread(server.ended_early.wait, 5)

    asyncio.run(run())
    assert server.ended_early.is_set()


def test_tasks_share_a_client_and_run_side_by_side(server, respond):
    together = threading.Barrier(4, timeout=10)

    def unary(request, context):
        together.wait()
        return respond.result()

    server.unary = unary

    async def run():
        async with AsyncClient(server.url) as client:
            return await asyncio.gather(*(client.generate(REQUEST) for _ in range(4)))

    assert [result.media for result in asyncio.run(run())] == [b"picture"] * 4


def test_async_client_is_of_no_use_outside_its_block(server):
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(AsyncClient(server.url).is_ready())
