# SPDX-License-Identifier: Apache-2.0
"""Requests that are followed by their id beside the call that sent them: progress, leases, results, cancelling."""

import http.client
import json
import os
import queue
import random
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from predict2_spec.results import Failure
from predict2_spec.tracking import MIN_LEASE_S, RequestState

pytestmark = pytest.mark.server

STEPS = 300  # a second or more
LONG = 3000  # longer than the shortest lease
STEPS_TO_STOP = 5  # the running one, and what a busy machine does between two calls of a test
FIELDS = {"prompt": "a ball", "seed": 5, "num_steps": STEPS, "width": 32, "height": 32}
WAIT_S = 60
BIN = Path(sys.executable).parent


def wait_for(condition):
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


class Caller:
    """Calls one server by gRPC and by HTTP, with ids and leases."""

    def __init__(self, server, make_inputs):
        self.server = server
        self.client = tritonclient.grpc.InferenceServerClient(server.url)
        self.make_inputs = partial(make_inputs, tritonclient.grpc)

    def close(self):
        self.client.close()

    def track(self, request_id, action="look"):
        """The state and what else `tracking` answers."""
        values = {"request_id": request_id, "action": action}
        result = self.client.infer("tracking", self.make_inputs("tracking", values))
        outputs = {o.name: result.as_numpy(o.name) for o in result.get_response().outputs}
        return RequestState.from_json(outputs.pop("state").item().decode()), outputs

    def call(self, request_id, lease_s=None, timeout_s=0, **fields):
        """The media of a unary call."""
        inputs = self.make_inputs("text2image", {**FIELDS, **fields})
        parameters = {} if lease_s is None else {"lease_s": lease_s}
        options = {"timeout": int(timeout_s * 1e6)} if timeout_s else {}
        result = self.client.infer(
            "text2image", inputs, request_id=request_id, parameters=parameters, **options
        )
        return result.as_numpy("media").tobytes()

    @contextmanager
    def unary(self, request_id, lease_s, **fields):
        """A unary call on a connection that breaks when the block ends."""
        inputs = self.make_inputs("text2image", {**FIELDS, **fields})
        with tritonclient.grpc.InferenceServerClient(self.server.url) as own:
            parameters = {"lease_s": lease_s}
            options = {"request_id": request_id, "parameters": parameters}
            context = own.async_infer("text2image", inputs, lambda **answer: None, **options)
            yield
            context.cancel()

    @contextmanager
    def stream(self, request_id, lease_s=None):
        """A stream that breaks when the block ends, as a queue of (result, error)."""
        values = {"task": "text2image", **FIELDS}
        received = queue.SimpleQueue()
        with tritonclient.grpc.InferenceServerClient(self.server.url) as own:
            own.start_stream(lambda result, error: received.put((result, error)))
            own.async_stream_infer(
                "generate",
                self.make_inputs("generate", values),
                request_id=request_id,
                enable_empty_final_response=True,
                parameters={"lease_s": lease_s} if lease_s else None,
            )
            yield received
            own.stop_stream(cancel_requests=True)

    @contextmanager
    def http(self, request_id, lease_s, **fields):
        """A call over HTTP whose client goes away when the block ends."""
        types = {str: "BYTES", int: "INT64"}
        body = {
            "id": request_id,
            "parameters": {"lease_s": lease_s},
            "inputs": [
                {"name": name, "shape": [1], "datatype": types[type(value)], "data": [value]}
                for name, value in {**FIELDS, **fields}.items()
            ],
        }
        connection = http.client.HTTPConnection(self.server.http_url)
        with closing(connection):
            connection.request("POST", "/v2/models/text2image/infer", json.dumps(body))
            yield

    def steps(self):
        """Steps of pictures that the server has done."""
        [stats] = self.client.get_inference_statistics("text2image_denoiser").model_stats
        return int(stats.inference_count)

    def wait_until_begun(self, request_id):
        wait_for(lambda: self.track(request_id)[0].state != "unknown")
        return wait_for(lambda: self.track(request_id)[0].event)

    def wait_until_ended(self, request_id):
        wait_for(lambda: self.track(request_id)[0].state in ("done", "failed"))
        return self.track(request_id, "fetch")


@pytest.fixture(scope="module")
def server(serve_class, slim_repository, tmp_path_factory):
    """A server of this file's own: open to HTTP, and to requests that take long."""
    folder, temporary = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("temporary")
    limit = ("--limit", f"num_steps={LONG}", "--allow-http-inference")
    serve = serve_class(folder / "log.txt", slim_repository, *limit, TMPDIR=str(temporary))
    try:
        yield serve.wait_until_ready()
        assert serve.stop() == 0, serve.text()
    finally:
        serve.kill()


@pytest.fixture(scope="module")
def caller(server, infer_inputs):
    with closing(Caller(server, infer_inputs)) as caller:
        yield caller


@pytest.fixture(scope="module")
def expected(caller):
    """What FIELDS give."""
    return caller.call("")


@pytest.fixture(scope="module")
def quick(caller):
    """What they give in one step."""
    return caller.call("", num_steps=1)


@pytest.fixture(autouse=True)
def goes_on(server, caller, quick):
    """After each test the server is as it was."""
    processes, log = server.models(), len(server.text())
    yield
    assert caller.call("", num_steps=1) == quick
    assert server.models() == processes
    assert "Traceback" not in server.text()[log:]


@pytest.fixture
def request_id():
    return str(uuid4())


@pytest.mark.parametrize("way", ["unary", "stream", "http"])
def test_a_client_whose_connection_broke_fetches_its_result_later(
    caller, request_id, expected, way
):
    with getattr(caller, way)(request_id, lease_s=30):
        caller.wait_until_begun(request_id)
    assert caller.track(request_id)[0].state == "running"
    state, outputs = caller.wait_until_ended(request_id)
    assert (state.state, state.failure) == ("done", None)
    assert outputs["media"].tobytes() == expected
    assert json.loads(outputs["metadata"].item())["seed"] == FIELDS["seed"]
    assert state.kept_s > 3000


def test_an_http_client_that_goes_away_stops_the_work_when_its_lease_ends(caller, request_id):
    before = caller.steps()
    with caller.http(request_id, lease_s=MIN_LEASE_S, num_steps=LONG):
        caller.wait_until_begun(request_id)
    state, _ = caller.wait_until_ended(request_id)
    at_end = caller.steps()
    assert state.failure.status == "CANCELLED"
    assert "nobody renewed the request's lease of 2 s" in state.failure.message
    time.sleep(0.5)
    assert caller.steps() - at_end <= STEPS_TO_STOP
    assert at_end - before < LONG


def test_a_lease_that_is_renewed_keeps_the_work_alive(caller, request_id):
    with caller.http(request_id, lease_s=MIN_LEASE_S, num_steps=LONG):
        begun = caller.wait_until_begun(request_id)
    seconds = begun.seconds
    while seconds < begun.seconds + 2 * MIN_LEASE_S:
        state, _ = caller.track(request_id, "renew")
        assert state.state == "running"
        seconds = state.event.seconds
        time.sleep(0.2)
    caller.track(request_id, "cancel")
    assert "through tracking" in caller.wait_until_ended(request_id)[0].failure.message


def last_of(received):
    """The outputs of a stream's last message; none where it has none."""
    outputs = {}
    while True:
        result, error = received.get(timeout=WAIT_S)
        assert error is None
        message = result.get_response()
        outputs = {o.name: result.as_numpy(o.name) for o in message.outputs} or outputs
        if message.parameters["triton_final_response"].bool_param:
            return outputs


def test_streams_are_cancelled_through_tracking_and_triton_lives(caller):
    """At any moment of the work; some of them before it begins."""
    moments = random.Random(1)
    for _ in range(20):
        request_id = str(uuid4())
        with caller.stream(request_id) as received:
            time.sleep(moments.uniform(0, 0.2))
            assert caller.track(request_id, "cancel")[0].state in ("unknown", "running")
            outputs = last_of(received)
        failure = Failure.from_json(outputs["error"].item().decode())
        assert failure == Failure("CANCELLED", "the request was cancelled through tracking")
        assert caller.track(request_id)[0].failure == failure


@pytest.mark.parametrize("way", ["unary", "http"])
def test_a_call_is_cancelled_through_tracking(caller, request_id, way):
    before = caller.steps()
    with getattr(caller, way)(request_id, lease_s=30):
        caller.wait_until_begun(request_id)
        caller.track(request_id, "cancel")
        state, _ = caller.wait_until_ended(request_id)
    assert state.failure.message == "the request was cancelled through tracking"
    assert caller.steps() - before < STEPS


def test_what_is_cancelled_before_it_begins_never_runs(caller, request_id):
    before = caller.steps()
    assert caller.track(request_id, "cancel")[0].state == "unknown"
    with pytest.raises(InferenceServerException, match="cancelled through tracking") as caught:
        caller.call(request_id)
    assert caught.value.status() == "StatusCode.CANCELLED"
    assert caller.steps() == before


def test_the_same_request_twice_is_made_once(caller, request_id, expected):
    with caller.stream(request_id, lease_s=30) as received:
        caller.wait_until_begun(request_id)
        with pytest.raises(InferenceServerException, match="is running; ask"):
            caller.call(request_id)
        assert last_of(received)["media"].tobytes() == expected
    other = str(uuid4())
    assert caller.call(other) == expected
    before = caller.steps()
    assert caller.call(other) == expected
    assert caller.steps() == before
    with pytest.raises(InferenceServerException, match="other content") as caught:
        caller.call(other, seed=6)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_progress_is_told_while_the_request_runs(caller, request_id):
    with caller.unary(request_id, lease_s=30):
        event = wait_for(
            lambda: (e := caller.track(request_id)[0].event) and e.stage == "denoise_image" and e
        )
        assert 0 < event.step <= event.of == STEPS + 1
        assert event.eta_s is not None
        caller.wait_until_ended(request_id)


def test_a_time_limit_stops_the_work(caller, request_id):
    with pytest.raises(InferenceServerException, match=r"time limit of 0\.3 s passed"):
        caller.call(request_id, timeout_s=0.3, num_steps=LONG)
    assert caller.track(request_id)[0].state == "failed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"request_id": "short", "lease_s": 5}, "request id 'short' must be 8 to 128"),
        ({"request_id": "", "lease_s": 5}, "lease_s 5 was given to a request that isn't followed"),
        ({"request_id": "a-good-request", "lease_s": 1}, "lease_s 1 must be a whole number"),
        ({"request_id": "a-good-request", "lease_s": "5"}, "lease_s '5' must be a whole number"),
        ({"request_id": "a-good-request", "lease_s": 2.5}, "lease_s 2.5 must be a whole number"),
    ],
)
def test_ids_and_leases_that_cannot_be_are_refused_by_their_value(caller, fields, message):
    with pytest.raises(InferenceServerException, match=message) as caught:
        caller.call(**fields)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_results_outlive_the_server_and_what_it_left_running_has_failed(
    start_server, slim_repository, infer_inputs, tmp_path, quick
):
    folder, (done, left) = tmp_path / "state", (str(uuid4()), str(uuid4()))
    first = start_server(slim_repository, "--state", folder).wait_until_ready()
    with closing(Caller(first, infer_inputs)) as caller:
        assert caller.call(done, num_steps=1) == quick
        command = [BIN / "predict2-serve", slim_repository, "--http-port", "0"]
        command += ["--grpc-port", "0", "--metrics-port", "0", "--state", folder]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith("predict2-serve: another server follows its requests in")
        with caller.unary(left, lease_s=30, num_steps=100):
            caller.wait_until_begun(left)
            [pid] = [pid for pid, n in first.models().items() if n.startswith("text2image_0")]
            os.kill(pid, signal.SIGKILL)  # as when a process is killed for its memory
            assert first.process.wait(WAIT_S) == 1
    next_one = start_server(slim_repository, "--state", folder).wait_until_ready()
    with closing(Caller(next_one, infer_inputs)) as caller:
        state, outputs = caller.track(done, "fetch")
        assert state.state == "done"
        assert outputs["media"].tobytes() == quick
        state, _ = caller.track(left)
        assert state.state == "failed"
        assert "the server ended before the request did" in state.failure.message
        assert caller.call(left, num_steps=100)  # and can be sent again
