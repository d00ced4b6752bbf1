# SPDX-License-Identifier: Apache-2.0
"""Requests that end early and requests at the same time: the server stops that work, and no other."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tritonclient.grpc

from predict2_client import Client, InvalidRequestError, RequestCancelledError
from predict2_spec.requests import Text2ImageRequest, Video2WorldRequest

pytestmark = pytest.mark.server

STEPS = 100
PASSES = STEPS + 1  # the solver's last is the clean one
# A step that runs when the cancel arrives is finished. The rest is what a busy machine may do between two
# calls of a test, at some 20 ms a step.
STEPS_TO_STOP = 5
QUICK = Text2ImageRequest(prompt="all is well", num_steps=1, width=16, height=16)


@pytest.fixture(scope="module")
def expected(server):
    """What QUICK gives."""
    with Client(server.url) as client:
        return client.generate(QUICK, timeout_s=60).media


@pytest.fixture(autouse=True)
def goes_on(server, expected):
    """After each test the server is as it was."""
    processes, log = server.models(), len(server.text())
    yield
    with Client(server.url) as client:
        assert client.generate(QUICK, timeout_s=60).media == expected
    assert server.models() == processes
    assert "Traceback" not in server.text()[log:]


@pytest.fixture
def long_request(picture_png):
    return Video2WorldRequest(prompt="a ball", image=picture_png, num_steps=STEPS)


@pytest.fixture
def steps_done(triton):
    """Steps of clips that the server has finished since it started."""

    def steps_done():
        [stats] = triton.get_inference_statistics("video2world_denoiser").model_stats
        return int(stats.inference_count)

    return steps_done


@pytest.fixture
def steps_when_still(steps_done):
    """The same, once no more are made."""

    def steps_when_still():
        deadline = time.monotonic() + 60
        count, since = steps_done(), time.monotonic()
        while time.monotonic() - since < 0.5:
            assert time.monotonic() < deadline, "the server goes on and on"
            time.sleep(0.02)
            if (now := steps_done()) != count:
                count, since = now, time.monotonic()
        return count

    return steps_when_still


@pytest.fixture
def stops(steps_done, steps_when_still):
    """A block at whose end the server must stop working within a step."""

    class Stops:
        def __enter__(self):
            self.before = steps_when_still()

        def __exit__(self, *error):
            at_end = steps_done()
            still = steps_when_still()
            assert still - at_end <= STEPS_TO_STOP
            assert still - self.before < PASSES, "nothing was cancelled"

    return Stops()


def test_an_exception_in_on_event_stops_the_work(client, stops, long_request):
    def on_event(event):
        if (event.stage, event.step) == ("denoise_video", 3):
            raise ZeroDivisionError

    with stops, pytest.raises(ZeroDivisionError):
        client.generate(long_request, on_event)


@pytest.mark.parametrize("on_event", [None, lambda event: None], ids=["unary", "stream"])
def test_a_time_limit_stops_the_work(client, stops, long_request, on_event):
    with stops, pytest.raises(RequestCancelledError, match=r"time limit.* allow it more time"):
        client.generate(long_request, on_event, timeout_s=0.3)


def wait_for_steps(steps_done, before, count=3):
    deadline = time.monotonic() + 60
    while steps_done() < before + count:
        assert time.monotonic() < deadline, "the request never began"
        time.sleep(0.005)


def test_cancelling_a_unary_call_stops_the_work(start_call, stops, steps_done):
    with stops:
        call = start_call(num_steps=STEPS)
        wait_for_steps(steps_done, stops.before)
        call.cancel()
        assert call.error().status() == "StatusCode.CANCELLED"


class Call:
    """A unary call under way."""

    def __init__(self, triton, inputs):
        self._ended = threading.Event()
        self._context = triton.async_infer("video2world", inputs, self._end)
        self.cancel = self._context.cancel

    def _end(self, result, error):
        self._result, self._error = result, error
        self._ended.set()

    def error(self):
        """How it failed; None when it didn't."""
        assert self._ended.wait(60)
        return self._error

    def media(self):
        assert self.error() is None, self.error()
        return self._result.as_numpy("media").tobytes()


@pytest.fixture
def start_call(triton, infer_inputs, picture_png):
    def start_call(**fields):
        fields = {"prompt": "a ball", "image": picture_png, **fields}
        return Call(triton, infer_inputs(tritonclient.grpc, "video2world", fields))

    return start_call


def test_closing_the_client_stops_its_work(server, stops, steps_done, long_request):
    client = Client(server.url)
    with stops, ThreadPoolExecutor(1) as threads:
        running = threads.submit(client.generate, long_request)
        wait_for_steps(steps_done, stops.before)
        client.close()
        with pytest.raises(RequestCancelledError):
            running.result(60)


def test_a_request_cancelled_in_the_queue_never_runs(
    start_call, steps_done, steps_when_still, toy_repository
):
    config = (toy_repository / "video2world" / "config.pbtxt").read_text()
    assert "count: 2," in config  # so many run at once; the third has to wait
    before = steps_when_still()
    running = [start_call(num_steps=40, seed=seed) for seed in (1, 2)]
    wait_for_steps(steps_done, before, count=6)  # both have long arrived
    waiting = start_call(num_steps=STEPS)
    time.sleep(0.1)
    waiting.cancel()
    assert waiting.error().status() == "StatusCode.CANCELLED"
    assert len({call.media() for call in running}) == 2
    assert steps_when_still() - before == 2 * 41


def test_a_cancelled_request_leaves_its_neighbour_alone(
    client, start_call, steps_done, picture_png
):
    alone = client.video2world("a ball", image=picture_png, num_steps=30, seed=7).media
    before = steps_done()
    cancelled, neighbour = start_call(num_steps=STEPS), start_call(num_steps=30, seed=7)
    wait_for_steps(steps_done, before, count=6)
    cancelled.cancel()
    assert cancelled.error().status() == "StatusCode.CANCELLED"
    assert neighbour.media() == alone


def test_two_requests_share_the_server_step_by_step(server, client, picture_png):
    def run(seed, heard):
        with Client(server.url) as own:
            return own.video2world(
                "a ball",
                image=picture_png,
                num_steps=40,
                seed=seed,
                on_event=lambda event: heard.append((seed, event)),
            ).media

    alone = [run(seed, []) for seed in (1, 2)]
    heard = []
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(run, (1, 2), (heard, heard)))
    assert together == alone
    steps = [(seed, event.step) for seed, event in heard if event.stage == "denoise_video"]
    assert len(steps) == 2 * 41
    first_end = next(i for i, (_, step) in enumerate(steps) if step == 41)
    seeds = [seed for seed, _ in steps[:first_end]]
    assert sum(a != b for a, b in itertools.pairwise(seeds)) >= 10


def test_bad_requests_fail_no_good_ones_beside_them(server):
    """More at once than there are instances, every third of them bad."""
    requests = [
        Text2ImageRequest(
            prompt="a ball",
            seed=seed,
            num_steps=3,
            width=32,
            height=32,
            aspect_ratio="1:1",
            resolution="720" if seed % 3 == 2 else "",
        )
        for seed in range(12)
    ]

    def run(request):
        with Client(server.url) as client:
            try:
                return client.generate(request, timeout_s=60).media
            except InvalidRequestError as error:
                return str(error)

    one_by_one = [run(request) for request in requests]
    with ThreadPoolExecutor(len(requests)) as threads:
        at_once = list(threads.map(run, requests))
    assert at_once == one_by_one
    refused = [answer for answer in at_once if isinstance(answer, str)]
    assert len(refused) == 4
    assert all("resolution 720 was asked for" in answer for answer in refused)
    assert len(set(at_once)) == 9  # eight pictures and one refusal
