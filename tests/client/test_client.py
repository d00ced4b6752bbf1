# SPDX-License-Identifier: Apache-2.0
"""The client over a real gRPC connection to a server that speaks Triton's protocol."""

import _thread
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from predict2_client import Client, Judgement
from predict2_spec.errors import (
    BlockedError,
    InvalidRequestError,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.requests import Text2ImageRequest, Video2WorldRequest

REQUEST = Text2ImageRequest(prompt="a ball")


def ignore(event):
    pass


MODES = pytest.mark.parametrize("on_event", [None, ignore], ids=["unary", "stream"])


SERVERS = pytest.mark.parametrize("tracks", [True, False], ids=["tracking", "older"])


@pytest.fixture
def client(server):
    with Client(server.url) as client:
        yield client


def work_until_cancelled(server, respond, tracks=True):
    """Make the fake server start, then work until its caller is gone or has said so."""
    if not tracks:
        server.tracking = None

    def unary(request, context):
        server.ended_early.wait(10)
        return respond.result()

    def stream(request, context):
        yield respond.event()
        server.ended_early.wait(10)

    server.unary, server.stream = unary, stream


@MODES
def test_result_comes_back(client, respond, on_event):
    result = client.generate(REQUEST, on_event)
    assert result.media == b"picture"
    assert result.metadata == respond.metadata


def test_without_events_the_task_model_is_called(client, server):
    client.generate(REQUEST)
    assert server.requests[0].model_name == "text2image"


def test_with_events_the_streaming_model_is_called(client, server):
    client.generate(REQUEST, ignore)
    assert server.requests[0].model_name == "generate"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("INVALID_ARGUMENT", InvalidRequestError),
        ("CANCELLED", RequestCancelledError),
        ("UNAVAILABLE", ServerUnavailableError),
        ("INTERNAL", ServerError),
    ],
)
def test_failure_of_a_stream_raises_with_the_servers_words(client, server, respond, status, error):
    answers = (respond.event(), respond.failure(status, "seed is odd"))
    server.stream = lambda request, context: iter(answers)
    with pytest.raises(error, match="seed is odd"):
        client.generate(REQUEST, ignore)


def test_events_arrive_in_order_in_the_callers_thread(client, server, respond):
    server.stream = lambda r, c: iter(
        (respond.event(step=1), respond.event(step=2), respond.result())
    )
    seen = []
    client.generate(REQUEST, lambda event: seen.append((event.step, threading.current_thread())))
    assert seen == [(1, threading.main_thread()), (2, threading.main_thread())]


@MODES
def test_refused_request_raises_with_the_servers_words(client, server, on_event):
    def refuse(request, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "seed is odd")

    server.unary = refuse
    server.stream = lambda request, context: iter(refuse(request, context) or ())
    with pytest.raises(InvalidRequestError, match=r"^seed is odd$"):
        client.generate(REQUEST, on_event)


@MODES
def test_refusal_of_a_guardrail_raises_with_its_verdict_where_there_is_one(
    client, server, respond, on_event
):
    message = "blocked: guardrail content refuses the clip"

    def refuse(request, context):
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, message)

    verdict = {"safe": False, "subject": "clip", "check": "content", "entry": "3-7"}
    failure = respond.failure("INVALID_ARGUMENT", message, verdict)
    server.unary = refuse
    server.stream = lambda request, context: iter((failure,))
    with pytest.raises(BlockedError, match="refuses the clip") as caught:
        client.generate(REQUEST, on_event)
    if on_event:
        assert caught.value.verdict.entry == "3-7"
    else:
        assert caught.value.verdict is None


def without_critic(request, context):
    context.abort(grpc.StatusCode.UNAVAILABLE, "no critic here; ask the owner for one")


def test_critic_is_asked_about_a_clip(client, server, respond):
    answers = ("<answer>Yes</answer>", "<answer>No</answer>")
    server.critic = lambda request, context: respond.judgement(answers, 0.5)
    assert client.judge(b"mp4", num_trials=2, seed=7) == Judgement(answers, 0.5)
    assert sent_values(server)["video"] == b"mp4"


def test_server_without_a_critic_says_so_itself(client, server):
    server.critic = without_critic
    with pytest.raises(ServerUnavailableError) as caught:
        client.judge(b"mp4")
    reason = "can't do this: no critic here; ask the owner for one"
    assert str(caught.value) == f"the server at {server.url} {reason}"


def test_server_that_is_not_ready_is_unavailable_whatever_it_says(client, server):
    server.critic, server.ready = without_critic, False
    with pytest.raises(ServerUnavailableError, match=r"unavailable \(no critic .*predict2 ready"):
        client.judge(b"mp4")


def test_time_limit_holds_for_the_critic(client, server, respond):
    server.critic = lambda request, context: server.ended_early.wait(10) or respond.judgement()
    with pytest.raises(RequestCancelledError, match="time limit"):
        client.judge(b"mp4", timeout_s=0.3)
    assert server.ended_early.wait(3)


def test_best_of_n_brings_the_best_clip_and_the_ranking(client, server, respond):
    def answer(request, context):
        response = respond.result(b"best")
        text = b'[{"seed": 1, "score": 0.5, "responses": ["a"], "error": ""}]'
        response.outputs.add(name="ranking", datatype="BYTES", shape=[1])
        response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
        return response

    server.unary = answer
    result, ranking = client.best_of_n(Video2WorldRequest(prompt="on", image=b"png"), 2, 1)
    assert result.media == b"best"
    assert [(clip.seed, clip.score) for clip in ranking] == [(1, 0.5)]
    assert server.requests[0].model_name == "best_of_n"


def test_stream_error_without_a_status_raises(client, server):
    server.stream = lambda request, context: iter(("Request for unknown model: 'x' is not found",))
    with pytest.raises(ServerUnavailableError, match="unknown model"):
        client.generate(REQUEST, ignore)


def test_stream_that_ends_without_a_result_raises(client, server, respond):
    server.stream = lambda request, context: iter((respond.event(),))
    with pytest.raises(ServerError, match="without a result"):
        client.generate(REQUEST, ignore)


@MODES
@SERVERS
def test_time_limit_cancels_on_the_server(client, server, respond, on_event, tracks):
    work_until_cancelled(server, respond, tracks)
    began = time.monotonic()
    with pytest.raises(RequestCancelledError, match="time limit"):
        client.generate(REQUEST, on_event, timeout_s=0.3)
    assert time.monotonic() - began < 3
    assert server.ended_early.wait(3)


@MODES
@SERVERS
def test_ctrl_c_cancels_on_the_server(client, server, respond, on_event, tracks):
    work_until_cancelled(server, respond, tracks)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt) as caught:
        client.generate(REQUEST, on_event)
    assert server.ended_early.wait(3)
    assert caught.tb  # kept until here, lest collecting its frames be what cancelled


@SERVERS
def test_exception_of_the_callback_comes_out_and_cancels_on_the_server(
    client, server, respond, tracks
):
    work_until_cancelled(server, respond, tracks)

    def fail(event):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine") as caught:
        client.generate(REQUEST, fail)
    assert server.ended_early.wait(3)
    assert caught.tb


@MODES
def test_client_serves_on_after_a_cancelled_request(client, server, respond, on_event):
    before = server.unary, server.stream
    work_until_cancelled(server, respond)
    with pytest.raises(RequestCancelledError):
        client.generate(REQUEST, on_event, timeout_s=0.2)
    server.unary, server.stream = before
    assert client.generate(REQUEST, on_event).media == b"picture"


@MODES
def test_server_gone_in_the_middle_is_unavailable(on_event):
    empty_http2_settings = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # all a gRPC client waits for

    def accept_and_die(listener):
        connection, _ = listener.accept()
        connection.sendall(empty_http2_settings)
        time.sleep(0.3)
        connection.close()
        listener.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept_and_die, args=(listener,)).start()
        with (
            Client(f"127.0.0.1:{listener.getsockname()[1]}") as client,
            pytest.raises(ServerUnavailableError, match="unavailable"),
        ):
            client.generate(REQUEST, on_event)


@MODES
def test_no_server_is_unavailable_and_named(server, on_event):
    server.stop()
    with Client(server.url) as client, pytest.raises(ServerUnavailableError, match=server.url):
        client.generate(REQUEST, on_event)


def test_finished_request_is_not_cancelled(client, server, respond):
    def stream(request, context):
        yield respond.result()
        time.sleep(0.2)  # what a server does between the result and the end of the stream

    server.stream = stream
    client.generate(REQUEST, ignore)
    assert not server.ended_early.wait(0.4)


def test_threads_share_a_client_and_run_side_by_side(client, server, respond):
    together = threading.Barrier(4, timeout=10)

    def unary(request, context):
        together.wait()
        return respond.result()

    server.unary = unary
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(client.generate, [REQUEST] * 4))
    assert [result.media for result in results] == [b"picture"] * 4


def sent_values(server):
    request = server.requests[0]
    return dict(zip((t.name for t in request.inputs), request.raw_input_contents, strict=True))


def test_large_inputs_and_results_pass(client, server, respond):
    size = 20 * 1024 * 1024
    server.unary = lambda request, context: respond.result(bytes(size))
    result = client.video2world("on", video=b"x" * size)
    assert len(result.media) == size
    assert len(sent_values(server)["video"]) == size


def test_input_path_becomes_the_image(client, server, tmp_path):
    (tmp_path / "a.JPG").write_bytes(b"\xff\xd8")
    client.video2world("on", tmp_path / "a.JPG", seed=4)
    assert sent_values(server)["image"] == b"\xff\xd8"


def test_fields_reach_the_request(client, server):
    client.text2world("on", num_frames=9, image_guidance=1.0)
    assert server.requests[0].model_name == "text2world"
    assert {"num_frames", "image_guidance"} <= set(sent_values(server))


def test_bad_field_is_refused_before_anything_is_sent(client, server):
    with pytest.raises(InvalidRequestError, match="num_steps 0"):
        client.text2image("a ball", num_steps=0)
    assert server.requests == []


def test_ready_when_the_server_is(client, server):
    assert client.is_ready()
    server.ready = False
    assert not client.is_ready()


def test_waiting_ends_when_the_server_becomes_ready(client, server):
    server.ready = False
    threading.Timer(0.3, setattr, (server, "ready", True)).start()
    client.wait_until_ready(10)
    assert client.is_ready()


def test_waiting_gives_up_after_its_limit(server):
    server.stop()
    with Client(server.url) as client, pytest.raises(ServerUnavailableError, match=r"after 0\.1 s"):
        client.wait_until_ready(0.1)


@pytest.mark.parametrize("url", ["localhost", "http://localhost:8001", "host:port", "", "a b:80"])
def test_url_that_is_no_host_and_port_is_refused(url):
    with pytest.raises(InvalidRequestError, match=r"such as 127\.0\.0\.1:8001"):
        Client(url)


@pytest.mark.parametrize("url", ["localhost:8001", "[::1]:8001", "gpu-7.example.org:80"])
def test_url_of_host_and_port_is_taken(url):
    with Client(url) as client:
        assert client.url == url


def test_proxy_of_the_machine_is_not_used_for_the_machine_itself(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with Client(server.url) as client:
        assert client.is_ready()
