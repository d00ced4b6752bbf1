# SPDX-License-Identifier: Apache-2.0
"""What breaks while a server works, and what callers and owners see of it. docs/faults.md has the table."""

import os
import re
import shutil
import signal
import socket
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from predict2_client import Client
from predict2_spec.errors import Predict2Error, ServerError, ServerUnavailableError
from predict2_spec.requests import Text2ImageRequest

pytestmark = pytest.mark.server

QUICK = Text2ImageRequest(prompt="a ball", num_steps=1, width=16, height=16)
LONG = Text2ImageRequest(prompt="a ball", num_steps=100, width=64, height=64)
LEAKS = re.compile(r"Traceback|File \"|object at 0x|/(home|root|usr|tmp|site-packages)/|secret")
WAIT_S = 90  # for a hang; the machine may be busy

# Put behind a stage's model.py: the real stage, and as a file says now, one that breaks.
BROKEN = """

_sound = TritonPythonModel.initialize


def _initialize(self, args):
    import dataclasses
    import time
    from pathlib import Path

    import numpy as np

    _sound(self, args)
    sound = self.stage
    engine = lambda inputs: {k: v * np.nan for k, v in sound.engine(inputs).items()}

    def stage(inputs):
        fault = Path("FAULT").read_text()
        if fault == "raises":
            raise RuntimeError("secret words of the server in /root/here")
        if fault == "hangs":
            time.sleep(10_000)
        return dataclasses.replace(sound, engine=engine)(inputs) if fault == "nan" else sound(inputs)

    self.stage = stage


TritonPythonModel.initialize = _initialize
"""


@pytest.fixture(scope="module")
def fault(slim_repository, tmp_path_factory):
    """A repository whose denoiser breaks as `fault.write_text` says: raises, nan, hangs; or not at all."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "fault").write_text("")
    shutil.copytree(slim_repository, folder / "toy", symlinks=True)
    stage = folder / "toy" / "text2image_denoiser"
    real = stage.resolve()
    stage.unlink()
    shutil.copytree(real, stage)
    model = stage / "1" / "model.py"
    model.write_text(model.read_text() + BROKEN.replace("FAULT", str(folder / "fault")))
    return folder / "fault"


@pytest.fixture(scope="module")
def breaking(fault, serve_class):
    serve = serve_class(
        fault.parent / "log.txt", fault.parent / "toy", "--stage-timeout", "4", TMPDIR=str(fault.parent)
    )  # fmt: skip
    try:
        yield serve.wait_until_ready()
    finally:
        serve.kill()
        serve.sweep()


@pytest.mark.parametrize("on_event", [None, lambda event: None], ids=["unary", "stream"])
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", r"text2image_denoiser failed on this request; the server's log says why"),
        ("nan", r"text2image_denoiser made NaN or infinite values .* predict2-export verify shows it"),
    ],
)  # fmt: skip
def test_an_engine_that_fails_fails_its_request_alone(breaking, fault, kind, message, on_event):
    with Client(breaking.url) as client:
        before = client.generate(QUICK, timeout_s=WAIT_S).media
        fault.write_text(kind)
        try:
            with pytest.raises(ServerError, match=message) as caught:
                client.generate(QUICK, on_event, timeout_s=WAIT_S)
        finally:
            fault.write_text("")
        assert not LEAKS.search(str(caught.value))
        assert client.generate(QUICK, timeout_s=WAIT_S).media == before
    if kind == "raises":
        assert "secret words" in breaking.text(), "its owner has to learn why"


def test_an_engine_that_hangs_ends_the_server_which_says_so(breaking, fault):
    fault.write_text("hangs")
    with Client(breaking.url) as client, pytest.raises(ServerUnavailableError) as caught:
        client.generate(QUICK, timeout_s=WAIT_S)
    assert not LEAKS.search(str(caught.value))
    assert breaking.process.wait(WAIT_S) == 1
    assert re.search(
        r"text2image_denoiser has worked on one call for more than 4 s", breaking.text()
    )


def processes_named(serve, name):
    if name == "predict2-serve":
        return [serve.process.pid]
    if name == "tritonserver":
        every = serve.processes() - {serve.process.pid} - set(serve.models())
        return [pid for pid in every if "tritonserver" in Path(f"/proc/{pid}/cmdline").read_text()]
    return [pid for pid, instance in serve.models().items() if instance.startswith(name)]


def wait_for(what):
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "name", ["text2image_denoiser", "text2image", "tritonserver", "predict2-serve"]
)
def test_a_killed_process_ends_the_server_and_its_callers_are_told(
    start_server, slim_repository, name
):
    """No request waits for ever, nothing of the server stays, and the next one can start on its ports."""
    serve = start_server(slim_repository).wait_until_ready()
    every, stages = serve.processes(), []
    outcome = []

    def ask():
        with Client(serve.url) as client:
            try:
                outcome.append(
                    client.generate(
                        LONG, lambda event: stages.append(event.stage), timeout_s=WAIT_S
                    )
                )
            except Predict2Error as error:
                outcome.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    wait_for(lambda: "denoise_image" in stages)
    for pid in processes_named(serve, "generate" if name == "text2image" else name):
        os.kill(pid, signal.SIGKILL)
    assert serve.process.wait(WAIT_S) == (-signal.SIGKILL if name == "predict2-serve" else 1)
    caller.join(WAIT_S)
    (error,) = outcome
    assert isinstance(error, (ServerUnavailableError, ServerError)), error
    assert not LEAKS.search(str(error))
    wait_for(lambda: not any(running(pid) for pid in every))
    port = int(serve.url.rpartition(":")[2])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_slow_and_half_open_clients_keep_nobody_out(server):
    """Connections that say nothing, half a preface, or half of an HTTP request."""
    begun = [
        b"",
        b"PRI * HTTP/2.0\r\n",
        b"POST /v2/models/text2image/infer HTTP/1.1\r\nContent-Length: 100\r\n\r\n{",
    ]
    silent = []
    try:
        for url in (server.url, server.http_url):
            host, _, port = url.rpartition(":")
            for index in range(150):
                silent.append(socket.create_connection((host, int(port)), 30))
                silent[-1].sendall(begun[index % len(begun)])
        with Client(server.url) as client:
            assert client.generate(QUICK, timeout_s=WAIT_S).media
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("manifest.json", lambda data: data[: len(data) // 2], r"manifest.json"),
        ("manifest.json", lambda data: data.replace(b'"toy"', b'"2b-720p-16fps"'), r"preset"),
        ("manifest.json", lambda data: b"[]", r"manifest.json"),
        ("*.onnx", lambda data: data[: len(data) // 2], r"text_encoder"),
        ("*.onnx", lambda data: b"", r"text_encoder"),
    ],
    ids=["half a manifest", "another preset's", "no manifest", "half a graph", "an empty graph"],
)
def test_damaged_files_are_named_before_anybody_is_served(
    start_server, slim_repository, tmp_path, file, damage, message
):
    repository = tmp_path / "toy"
    shutil.copytree(slim_repository, repository, symlinks=True)
    stage = repository / "text_encoder"
    real = stage.resolve()
    stage.unlink()
    shutil.copytree(real, stage)
    (path, *_) = (stage / "1").glob(file)
    path.write_bytes(damage(path.read_bytes()))
    serve = start_server(repository)
    assert serve.process.wait(WAIT_S) == 1
    assert "ready after" not in serve.text()
    assert re.search(message, serve.text()), serve.text()
    assert "Build it again" in serve.text() or "build" in serve.text(), textwrap.shorten(
        serve.text(), 500
    )


@pytest.mark.slow
def test_an_hour_of_all_kinds_of_requests_leaves_memory_and_files_flat(
    start_server, toy_repository
):
    """PREDICT2_SOAK_S says for how long; results, refusals, cancellations and clips by turns."""
    seconds = float(os.environ.get("PREDICT2_SOAK_S", "3600"))
    serve = start_server(toy_repository).wait_until_ready()
    end = time.monotonic() + seconds
    counts = {"ok": 0, "refused": 0, "cancelled": 0}

    def ask(seed):
        with Client(serve.url) as client:
            while time.monotonic() < end:
                client.generate(LONG, timeout_s=WAIT_S)
                client.text2world("a ball", num_steps=2, seed=seed, timeout_s=WAIT_S)
                counts["ok"] += 2
                try:
                    client.text2image("a ball", aspect_ratio="21:9")
                except Predict2Error:
                    counts["refused"] += 1
                try:
                    client.generate(LONG, lambda event: 1 / (event.stage != "denoise_image"))
                except ZeroDivisionError:
                    counts["cancelled"] += 1

    callers = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for caller in callers:
        caller.start()
    time.sleep(min(120, seconds / 4))  # caches fill
    early = footprint(serve)
    for caller in callers:
        caller.join()
    late = footprint(serve)
    sys.stdout.write(
        f"{counts} in {seconds:g} s; MiB, descriptors and shared MiB: {early} then {late}\n"
    )
    assert all(counts.values())
    assert late[0] < early[0] * 1.1 + 64
    assert late[1] <= early[1] + 32
    assert late[2] < early[2] * 1.1 + 64


def footprint(serve):
    """Resident MiB and open files of all its processes, MiB of its shared memory."""
    resident = files = 0
    for pid in serve.processes():
        status = Path(f"/proc/{pid}/status").read_text()
        resident += int(re.search(r"RssAnon:\s+(\d+)", status)[1]) // 1024
        files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    shared = sum(path.stat().st_blocks * 512 for path in serve.regions() if path.exists()) >> 20
    return resident, files, shared
