# SPDX-License-Identifier: Apache-2.0
"""More requests than a server takes at once, and larger ones: who gets in, who waits, who is refused in which words."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import tritonclient.grpc

from predict2_client import Client
from predict2_spec.admission import BATCH, error_from_words
from predict2_spec.errors import BusyError, InvalidRequestError, RequestExpiredError
from predict2_spec.requests import Text2ImageRequest

pytestmark = pytest.mark.server

QUEUE_SIZE = 16
ENDLESS = 5000  # solver steps, minutes of work; whoever asks for them also cancels them
OPTIONS = (
    f"--queue-size={QUEUE_SIZE}",
    *(f"--instances={name}=1" for name in ("text2image", "video2world", "text2world", "best_of_n")),
    "--instances=generate=2",
    "--limit=prompt_bytes=1KB",
    f"--limit=num_steps={ENDLESS}",
    "--limit=guidance=60",  # more than the default
    "--limit=num_frames=9",
    "--limit=pixels=3840",  # the toy's own sizes have 3840 and 4096
    "--limit=num_generations=3",
    "--limit=media_bytes=50KB",
    "--limit=media_pixels=4000",
    "--limit=media_frames=7",
    "--limit=media_seconds=4",
    "--limit=media_total_pixels=20K",
)
TINY = {"prompt": "a ball", "num_steps": 1, "width": 16, "height": 16}


@pytest.fixture(scope="module")
def busy_server(serve_class, toy_repository, tmp_path_factory):
    """A server that takes on little, with limits of its own."""
    folder = tmp_path_factory.mktemp("admission")
    serve = serve_class(folder / "log.txt", toy_repository, *OPTIONS, TMPDIR=str(folder))
    try:
        yield serve.wait_until_ready()
    finally:
        serve.kill()
        serve.sweep()


@pytest.fixture(scope="module")
def triton(busy_server):
    with tritonclient.grpc.InferenceServerClient(busy_server.url) as triton:
        yield triton


class Call:
    """A unary call under way; it knows how many of the others had ended before it."""

    ended = itertools.count()

    def __init__(self, triton, inputs, model="text2image", **options):
        self._done = threading.Event()
        self._context = triton.async_infer(model, inputs, self._end, **options)
        self.cancel = self._context.cancel

    def _end(self, result, error):
        self.place, self._result, self._error = next(self.ended), result, error
        self._done.set()

    def error(self):
        """The message it was refused with; empty when it wasn't."""
        assert self._done.wait(60), "neither answered nor refused"
        return self._error.message() if self._error else ""

    def media(self):
        assert not self.error()
        return self._result.as_numpy("media").tobytes()


@pytest.fixture
def send(triton, infer_inputs):
    """send(model, timeout, priority, field=value, ...): a call that goes on beside the test, and ends with it."""
    calls = []

    def send(model="text2image", *, timeout=None, priority=0, **fields):
        inputs = infer_inputs(tritonclient.grpc, model, {**TINY, **fields})
        calls.append(Call(triton, inputs, model, timeout=timeout, priority=priority))
        return calls[-1]

    yield send
    for call in calls:
        call.error()


@pytest.fixture
def begun(triton):
    """Requests that have begun their work, by what begins each."""

    def begun():
        [stats] = triton.get_inference_statistics("guardrail_text").model_stats
        return int(stats.inference_count)

    return begun


@pytest.fixture
def occupied(send, begun):
    """A block in which text2image, which has one instance, works on something else."""

    @contextmanager
    def occupied():
        before = begun()
        endless = send(num_steps=ENDLESS)
        deadline = time.monotonic() + 60
        while begun() == before:
            assert time.monotonic() < deadline, "it never began"
            time.sleep(0.01)
        try:
            yield
        finally:
            endless.cancel()
        assert endless.error(), "it ended by itself"

    return occupied


def test_of_two_hundred_at_once_each_gets_its_result_or_a_busy_answer(send, occupied, begun):
    expected = send().media()
    before = begun()
    with occupied():
        calls = [send() for _ in range(200)]
        deadline = time.monotonic() + 60
        while sum(call._done.is_set() for call in calls) < len(calls) - QUEUE_SIZE:
            assert time.monotonic() < deadline, "those that can't wait weren't told"
            time.sleep(0.01)
    refused = [call for call in calls if call.error()]
    assert len(calls) - len(refused) == QUEUE_SIZE
    for call in refused:
        assert isinstance(error_from_words(call.error()), BusyError)
    assert {call.media() for call in calls if not call.error()} == {expected}
    assert begun() - before == 1 + QUEUE_SIZE  # who was refused cost no work


def test_people_come_before_batches(send, occupied):
    with occupied():
        batches = [send(priority=BATCH) for _ in range(4)]
        people = [send() for _ in range(4)]
    assert not any(call.error() for call in (*batches, *people))
    assert max(call.place for call in people) < min(call.place for call in batches)


def test_batches_that_fill_their_queue_leave_people_theirs(send, occupied):
    with occupied():
        batches = [send(priority=BATCH) for _ in range(QUEUE_SIZE + 1)]
        person = send()
        assert isinstance(error_from_words(batches[-1].error()), BusyError)
    assert not person.error()


def test_who_waits_beyond_the_time_he_gave_is_told_and_not_worked_for(send, occupied, begun):
    before = begun()
    with occupied():
        late = send(timeout=200_000)  # microseconds
        patient = send(timeout=60_000_000)
        assert isinstance(error_from_words(late.error()), RequestExpiredError)
    assert patient.media()
    assert begun() - before == 2


def test_who_goes_away_while_waiting_is_not_worked_for(send, occupied, begun):
    before = begun()
    with occupied():
        gone = [send() for _ in range(5)]
        stays = send()
        for call in gone:
            call.cancel()
    assert stays.media()
    assert begun() - before == 2


def longest_run(values):
    return max(len(list(group)) for _, group in itertools.groupby(values))


def test_two_requests_take_turns_step_by_step(busy_server):
    seen, both = [], threading.Barrier(2, timeout=60)

    def generate(name):
        def note(event):
            if event.stage == "denoise_image":
                seen.append(name)
            elif event.stage == "encode_text":
                both.wait()

        with Client(busy_server.url) as client:
            client.generate(Text2ImageRequest(prompt="a ball", num_steps=40), note, timeout_s=60)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(generate, "ab"))
    last = min(len(seen) - seen[::-1].index(name) for name in "ab")  # after it one is alone
    together = seen[:last]
    # They begin as far apart as the server's answers reach two threads. Then one step each; two or three in a row
    # are events that overtook each other on their way, the third for a machine with other work.
    settled = together[len(together) // 4 :]
    assert min(map(settled.count, "ab")) >= 15
    assert longest_run(settled) <= 3


# What is a little too much, and the words that name it; the limit; the option that allows more.
REFUSED = {
    "prompt_bytes": ("text2image", {"prompt": "a" * 1001}, "prompt has 1001 bytes", 1000),
    "num_steps": ("text2image", {"num_steps": ENDLESS + 1}, f"num_steps {ENDLESS + 1}", ENDLESS),
    "guidance": ("text2image", {"guidance": 60.5}, "guidance 60.5", 60.0),
    "num_frames": ("text2world", {"num_frames": 13}, "num_frames 13", 9),
    "pixels": ("text2image", {"width": 64, "height": 64}, "width 64 x height 64 is 4096", 3840),
    "num_generations": ("best_of_n", {"num_generations": 4}, "num_generations 4", 3),
    "media_bytes": ("video2world", {"image": bytes(50_001)}, "file has 50001 bytes", 50000),
    "media_pixels": ("video2world", {"video": (1, 64, 64)}, "input is 64 x 64 pixels", 4000),
    "media_frames": ("video2world", {"video": (8, 32, 32)}, "video has 8 frames", 7),
    "media_seconds": ("video2world", {"video": (5, 32, 32, 1)}, "video plays 5 s", 4),
    "media_total_pixels": ("video2world", {"video": (6, 48, 80)}, "video has 23040 pixels", 20000),
}


def test_every_limit_is_tried():
    assert {f"--limit={name}" for name in REFUSED} == {
        option.rpartition("=")[0] for option in OPTIONS if option.startswith("--limit")
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_the_value_the_limit_and_the_option(send, picture, make_mp4, name):
    model, fields, value, limit = REFUSED[name]
    if isinstance(fields.get("video"), tuple):
        count, height, width, *fps = fields["video"]
        frames = picture[None, :1, :1].repeat(count, 0).repeat(height, 1).repeat(width, 2)
        fields = {"video": make_mp4(frames, *fps)}
    elif model == "best_of_n":
        fields = {**fields, "image": b"x"}
    if model != "text2image":
        fields = {"width": 0, "height": 0, "num_frames": 5, **fields}
    message = send(model, **fields).error()
    assert value in message
    assert str(limit) in message
    assert f"predict2-serve --limit {name}=" in message


def test_the_client_sends_what_only_this_server_allows(busy_server):
    with Client(busy_server.url) as client:
        assert client.text2image("a ball", guidance=55.0, num_steps=1, timeout_s=60).media
        with pytest.raises(InvalidRequestError, match=r"guidance 61\.0 must be .* 60\.0"):
            client.text2image("a ball", guidance=61.0, num_steps=1, timeout_s=60)
