# SPDX-License-Identifier: Apache-2.0
"""One real server over a toy repository, shared by the tests of this folder, and means to call it."""

import contextlib
import fcntl
import io
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from predict2_client import Client
from predict2_spec.presets import TOY
from predict2_spec.results import Failure
from predict2_spec.tensors import MODELS

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BUILT = ROOT / "build" / "test"  # kept between runs, so that only what changed is built again

# Limits for a hang, not measures of speed: the machine may be busy with other things.
START_S = 180
EXIT_S = 60
CALL_S = 60

CLIPS_ONLY = {"video2world", "text2world", "best_of_n", "prompt_refiner", "critic", "reasoner"}
_READY = re.compile(r"ready after .* s: gRPC (\S+), HTTP (\S+), metrics (\S+)/metrics")


def run_built(*command):
    done = subprocess.run(
        [str(BIN / command[0]), *map(str, command[1:])],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def toy_repository():
    """The toy preset's engines, built from the toy weights by the commands people use."""
    checkpoints, repository = BUILT / "checkpoints", BUILT / "toy"
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs in one checkout build one after the other
        run_built("predict2-export", "toy-weights", "--checkpoints", checkpoints)
        run_built("predict2-export", "build", "--checkpoints", checkpoints, "--output", repository)
    return repository


@pytest.fixture(scope="session")
def slim_repository(toy_repository, tmp_path_factory):
    """The same with pictures only and one process a model, for tests that start servers of their own."""
    folder = tmp_path_factory.mktemp("slim") / "toy"
    folder.mkdir()
    for part in toy_repository.iterdir():
        if part.name in ("text2image", "generate"):
            shutil.copytree(part, folder / part.name)
            config = folder / part.name / "config.pbtxt"
            config.write_text(re.sub(r"count: \d+", "count: 1", config.read_text()))
        elif part.name not in CLIPS_ONLY:
            (folder / part.name).symlink_to(part)
    return folder


class Serve:
    """A `predict2-serve` process on free ports, and what it wrote."""

    def __init__(self, log, repository, *arguments, **environment):
        ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
        command = [BIN / "predict2-serve", repository, *ports, *arguments]
        self.log = log
        self.seen = set()
        self.temporary = Path(environment.get("TMPDIR", tempfile.gettempdir()))
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C in pytest is not for the server
            )

    def text(self):
        return self.log.read_text(errors="replace")

    def wait_until_ready(self):
        """Wait for the line that names the ports, which the server has chosen itself."""
        deadline = time.monotonic() + START_S
        while not (found := _READY.search(self.text())):
            assert self.process.poll() is None, f"ended while starting:\n{self.text()}"
            assert time.monotonic() < deadline, f"not ready in {START_S} s:\n{self.text()}"
            time.sleep(0.05)
        self.url, self.http_url, self.metrics_url = found.groups()
        self.regions()
        return self

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(EXIT_S)

    def kill(self):
        """End it whatever it does; every signal after the first means now."""
        deadline = time.monotonic() + EXIT_S
        while self.process.poll() is None:
            self.process.send_signal(
                signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)

    def models(self):
        """The processes of its Python models: pid -> name of the instance."""
        found = {}
        for pid in _descendants(self.process.pid):
            words = _read(f"/proc/{pid}/cmdline").split("\0")
            if words[0].endswith("triton_python_backend_stub"):
                found[pid] = next((w for w in words if re.fullmatch(r"\w+_\d+_\d+", w)), "")
        return found

    def processes(self):
        """Its own process id and those of all it has started."""
        return {self.process.pid, *_descendants(self.process.pid)}

    def sweep(self):
        """Remove what a server leaves that didn't end in order: models' processes, shared memory."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            if f"{self.temporary}/" in _read(path).split("\0")[0]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.parent.name), signal.SIGKILL)
        for region in self.seen:
            region.unlink(missing_ok=True)

    def regions(self):
        """The files of shared memory that it uses."""
        maps = [_read(f"/proc/{pid}/maps") for pid in self.processes()]
        self.seen.update(map(Path, re.findall(r"/dev/shm/\S+", "".join(maps))))
        return self.seen


def _read(path):
    try:
        return Path(path).read_text()
    except OSError:  # the process has ended
        return ""


def _descendants(pid):
    children = {
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*")
        for child in _read(task / "children").split()
    }
    return children.union(*map(_descendants, children))


@pytest.fixture(scope="session")
def serve_class():
    """Starts a server whose life is a fixture's own matter."""
    return Serve


@pytest.fixture(scope="session")
def server(toy_repository, tmp_path_factory):
    """The server all tests share; the last test fails if it doesn't stop as it should."""
    folder, temporary = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("temporary")
    log = folder / "log.txt"
    serve = Serve(log, toy_repository, "--allow-stage-calls", TMPDIR=str(temporary))
    try:
        yield serve.wait_until_ready()
        assert serve.process.poll() is None, f"it ended by itself:\n{serve.text()}"
        assert serve.stop() == 0, serve.text()
    finally:
        serve.kill()


@pytest.fixture
def start_server(tmp_path):
    """start_server(repository, argument, ...): servers of a test's own, which are gone after it."""
    started = []

    def start(repository, *arguments):
        temporary = tmp_path / f"temporary{len(started)}"
        temporary.mkdir()
        log = tmp_path / f"server{len(started)}.txt"
        started.append(Serve(log, repository, *arguments, TMPDIR=str(temporary)))
        return started[-1]

    start.started = started
    yield start
    for serve in started:
        serve.kill()
        serve.sweep()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.failed:
        given = getattr(item, "funcargs", {})
        servers = [given.get("server"), *getattr(given.get("start_server"), "started", ())]
        for serve in filter(None, servers):
            report.sections.append(("end of the server's log", serve.text()[-6000:]))
    return report


@pytest.fixture
def client(server):
    """What people use."""
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="session")
def triton(server):
    """Triton's own client, past everything that ours checks."""
    with tritonclient.grpc.InferenceServerClient(server.url) as client:
        yield client


@pytest.fixture(scope="session")
def call(triton):
    """call(model, name=value, ...) -> {name: array} by gRPC.

    A value gets the type that the contract gives its name; an InferInput goes as it is.
    """

    def call(model, **values):
        inputs = make_inputs(tritonclient.grpc, model, values)
        result = triton.infer(model, inputs, client_timeout=CALL_S)
        return {o.name: result.as_numpy(o.name) for o in result.get_response().outputs}

    return call


@pytest.fixture(scope="session")
def http_server(toy_repository, tmp_path_factory):
    """Another server, which takes requests over HTTP too."""
    folder, temporary = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("temporary")
    log = folder / "log.txt"
    serve = Serve(log, toy_repository, "--allow-http-inference", TMPDIR=str(temporary))
    try:
        yield serve.wait_until_ready()
    finally:
        serve.kill()


@pytest.fixture(scope="session")
def call_http(http_server):
    """The same by HTTP."""
    with tritonclient.http.InferenceServerClient(
        http_server.http_url, network_timeout=CALL_S, connection_timeout=CALL_S
    ) as client:

        def call(model, **values):
            result = client.infer(model, make_inputs(tritonclient.http, model, values))
            return {o["name"]: result.as_numpy(o["name"]) for o in result.get_response()["outputs"]}

        yield call


@pytest.fixture
def stream(server):
    """stream(model, name=value, ...): all responses of a decoupled model, each as {name: array}.

    A failure, which comes as data, is raised as the error that a unary call would have had.
    """
    received = queue.SimpleQueue()
    with tritonclient.grpc.InferenceServerClient(server.url) as client:
        client.start_stream(lambda result, error: received.put((result, error)))

        def stream(model, **values):
            inputs = make_inputs(tritonclient.grpc, model, values)
            client.async_stream_infer(model, inputs, enable_empty_final_response=True)
            responses = []
            while True:
                result, error = received.get(timeout=CALL_S)
                if error is not None:
                    raise error
                message = result.get_response()
                outputs = {o.name: result.as_numpy(o.name) for o in message.outputs}
                if "error" in outputs:
                    failure = Failure.from_json(outputs["error"].item().decode())
                    raise InferenceServerException(failure.message, f"StatusCode.{failure.status}")
                if outputs:
                    responses.append(outputs)
                if message.parameters["triton_final_response"].bool_param:
                    return responses

        yield stream
        client.stop_stream()


def make_inputs(module, model, values):
    dtypes = {tensor.name: tensor.dtype for tensor in MODELS[model].inputs}
    return [
        value
        if isinstance(value, module.InferInput)
        else infer_input(module, name, dtypes[name], value)
        for name, value in values.items()
    ]


def infer_input(module, name, dtype, value):
    if dtype == "BYTES":
        texts = value if isinstance(value, list) else [value]
        array = np.array([t.encode() if isinstance(t, str) else t for t in texts], dtype=np.object_)
    elif isinstance(value, bytes):
        array = np.frombuffer(value, np.uint8)
    else:
        array = np.atleast_1d(np.asarray(value, triton_to_np_dtype(dtype)))
    tensor = module.InferInput(name, array.shape, dtype)
    tensor.set_data_from_numpy(array)
    return tensor


@pytest.fixture(scope="session")
def infer_inputs():
    """infer_inputs(tritonclient.grpc, model, {name: value}): the values as that client's inputs."""
    return make_inputs


@pytest.fixture(scope="session")
def picture():
    """A picture of the size of the toy's clips: nothing is cut off or scaled."""
    width, height = TOY.size("video2world", "16:9")
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, 255 - x - y], axis=-1).astype(np.uint8)


@pytest.fixture(scope="session")
def picture_png(picture):
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="session")
def make_mp4():
    """Write frames as an mp4 that holds them without loss."""

    def make_mp4(frames, fps=8):
        data = io.BytesIO()
        with av.open(data, "w", format="mp4") as container:
            stream = container.add_stream("libx264rgb", rate=fps)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "rgb24"
            stream.options = {"qp": "0"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        return data.getvalue()

    return make_mp4


@pytest.fixture(scope="session")
def clip(picture):
    """Eight different frames."""
    return np.stack([np.roll(picture, 10 * k, axis=1) // (1 + k % 2) for k in range(8)])


@pytest.fixture(scope="session")
def clip_mp4(clip, make_mp4):
    return make_mp4(clip)


@pytest.fixture(scope="session")
def read_mp4():
    """read_mp4(data) -> (frames, frames a second)."""

    def read_mp4(data):
        with av.open(io.BytesIO(data), format="mp4") as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
            return np.stack(frames), stream.average_rate

    return read_mp4
