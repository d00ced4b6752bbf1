# SPDX-License-Identifier: Apache-2.0
"""Connections that break, clients that die and servers that are busy: the result arrives, or a sentence says how to get it."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc

from predict2_client import (
    AsyncClient,
    BusyError,
    Client,
    RequestExpiredError,
    ServerUnavailableError,
)
from predict2_spec.requests import Text2ImageRequest

pytestmark = pytest.mark.server

BIN = Path(sys.executable).parent
STEPS = 300  # a second or more
LONG = 3000  # longer than the shortest lease
WAIT_S = 60
REQUEST = Text2ImageRequest(
    prompt="a ball", num_steps=STEPS, width=32, height=32, output_format="png"
)
LONG_REQUEST = Text2ImageRequest(prompt="a ball", num_steps=LONG, width=32, height=32)


class Line:
    """A TCP connection to the server that can be cut, and refused for a while."""

    def __init__(self, url):
        host, port = url.rsplit(":", 1)
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.broken = False
        self._ends = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:  # the listener was closed
                return
            if self.broken:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source, sink):
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        self._shut(source, sink)

    def _shut(self, *ends):
        for end in ends:
            with contextlib.suppress(OSError):  # it already is
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        self._shut(*self._ends)

    def close(self):
        self._listener.close()
        self.cut()
        for end in self._ends:
            end.close()


@pytest.fixture(scope="module")
def server(serve_class, slim_repository, tmp_path_factory):
    """A server of this file's own, where one request of a kind runs and one waits, and both may take long."""
    folder, temporary = tmp_path_factory.mktemp("server"), tmp_path_factory.mktemp("temporary")
    options = ("--limit", f"num_steps={LONG}", "--queue-size", 1)
    serve = serve_class(folder / "log.txt", slim_repository, *options, TMPDIR=str(temporary))
    try:
        yield serve.wait_until_ready()
        assert serve.stop() == 0, serve.text()
    finally:
        serve.kill()


@pytest.fixture
def line(server):
    line = Line(server.url)
    yield line
    line.close()


@pytest.fixture(scope="module")
def expected(server):
    """What REQUEST gives."""
    with Client(server.url) as client:
        return client.generate(REQUEST).media


def steps_done(server):
    with tritonclient.grpc.InferenceServerClient(server.url) as triton:
        [stats] = triton.get_inference_statistics("text2image_denoiser").model_stats
    return int(stats.inference_count)


@pytest.fixture(params=["threads", "asyncio"])
def generate(request, line):
    """generate(request, on_event, request_id, **terms) over the line, by one of both faces."""

    def generate(asked, on_event, request_id="", **terms):
        if request.param == "threads":
            with Client(line.url, **terms) as client:
                return client.generate(asked, on_event, WAIT_S, request_id=request_id)

        async def run():
            async with AsyncClient(line.url, **terms) as client:
                return await client.generate(asked, on_event, WAIT_S, request_id=request_id)

        return asyncio.run(run())

    return generate


@pytest.fixture
def when_running(server):
    """when_running(request_id, do): calls `do` in a thread once the request has made a step."""
    with ThreadPoolExecutor() as threads:
        watching = []

        def when_running(request_id, do):
            def watch():
                with Client(server.url) as client:
                    wait_until_running(client, request_id)
                do()

            watching.append(threads.submit(watch))

        yield when_running
        for watched in watching:
            watched.result(WAIT_S)


def wait_until_running(client, request_id):
    deadline = time.monotonic() + WAIT_S
    while not ((state := client.look(request_id)).event and state.event.stage == "denoise_image"):
        assert time.monotonic() < deadline
        assert state.state in ("unknown", "running")
        time.sleep(0.01)


@pytest.mark.parametrize("streams", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("away_s", [0.0, 1.5])
def test_a_result_arrives_though_the_connection_broke(
    server, line, generate, when_running, expected, streams, away_s
):
    request_id = f"broken-{streams}-{away_s}-{time.monotonic_ns()}"
    before, seen = steps_done(server), []

    def cut():
        while streams and not seen:  # the server is ahead of what has arrived
            time.sleep(0.01)
        line.broken = True
        line.cut()
        time.sleep(away_s)
        line.broken = False

    when_running(request_id, cut)
    result = generate(REQUEST, seen.append if streams else None, request_id)
    assert result.media == expected
    assert steps_done(server) - before == STEPS + 1  # the work was done once
    if streams:
        assert seen[0].stage == "check_prompt"


def test_a_connection_that_stays_broken_is_told_with_the_id(line, generate, when_running, server):
    request_id = f"gone-{time.monotonic_ns()}"

    def cut():
        line.broken = True
        line.cut()

    when_running(request_id, cut)
    with pytest.raises(ServerUnavailableError, match=f"predict2 fetch {request_id}"):
        generate(LONG_REQUEST, None, request_id, lease_s=2)
    with Client(server.url) as client, pytest.raises(RequestExpiredError, match="lease"):
        client.fetch(request_id)


def test_a_busy_server_is_told_or_waited_for(server, line, generate, when_running):
    """One runs, one waits, and the third is one too many until they are cancelled."""
    ids = [f"busy-{number}-{time.monotonic_ns()}" for number in range(2)]
    quick = Text2ImageRequest(prompt="a ball", num_steps=1, width=16, height=16)

    def occupy(request_id):
        with Client(server.url) as client:
            try:
                client.generate(LONG_REQUEST, request_id=request_id)
            except Exception as error:  # noqa: BLE001, told below
                ended.append(type(error).__name__)

    ended, threads = [], []
    with Client(server.url) as watcher:
        for request_id in ids:
            threads.append(threading.Thread(target=occupy, args=(request_id,)))
            threads[-1].start()
            if request_id == ids[0]:
                wait_until_running(watcher, request_id)
        time.sleep(0.5)  # the second has arrived
        with pytest.raises(BusyError, match="--retry-for"):
            generate(quick, None)

        def free(error, pause_s):
            for request_id in ids:
                watcher.cancel(request_id)

        assert generate(quick, None, retry_for_s=float(WAIT_S), on_retry=free).media
    for thread in threads:
        thread.join(WAIT_S)
    assert ended == ["RequestCancelledError"] * 2


class Command:
    """`predict2` processes in a folder."""

    def __init__(self, folder, server):
        self.folder = folder
        self.environment = {
            **os.environ,
            "PREDICT2_URL": server.url,
            "PREDICT2_METRICS_URL": server.metrics_url,
        }

    @contextlib.contextmanager
    def started(self, *arguments):
        process = subprocess.Popen(
            [BIN / "predict2", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments):
        with self.started(*arguments) as process:
            out, err = process.communicate(timeout=2 * WAIT_S)
        return process.returncode, out.splitlines(), err.splitlines()

    def start_and_kill(self, client, request, request_id, *arguments):
        """A request whose program dies while it runs."""
        size = ("--num_steps", request.num_steps, "--width", 32, "--height", 32)
        asked = ("--prompt", request.prompt, "--save_path", "never.png", *size)
        with self.started("text2image", *asked, "--request_id", request_id, *arguments) as process:
            wait_until_running(client, request_id)
            process.kill()


@pytest.fixture
def command(server, tmp_path):
    return Command(tmp_path, server)


@pytest.fixture
def client(server):
    with Client(server.url) as client:
        yield client


def test_fetch_brings_what_a_killed_program_asked_for(command, client, expected, tmp_path):
    request_id = f"killed-{time.monotonic_ns()}"
    command.start_and_kill(client, REQUEST, request_id)
    code, out, _ = command.run("fetch", request_id)
    assert (code, out) == (0, [f"output/{request_id}.png"])
    assert (tmp_path / out[0]).read_bytes() == expected
    code, [line], _ = command.run("status", request_id)
    assert code == 0
    assert "done; `predict2 fetch" in line


def test_the_death_of_a_client_stops_its_work_when_the_lease_ends(command, client):
    request_id = f"dead-{time.monotonic_ns()}"
    command.start_and_kill(client, LONG_REQUEST, request_id, "--lease", 2)
    deadline = time.monotonic() + WAIT_S
    while (state := client.look(request_id)).state == "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "lease" in state.failure.message


def test_cancel_stops_what_another_program_asked_for(command, client):
    request_id = f"theirs-{time.monotonic_ns()}"
    size = ("--num_steps", LONG, "--width", 32, "--height", 32)
    with command.started("text2image", *size, "--request_id", request_id) as theirs:
        wait_until_running(client, request_id)
        code, [line], _ = command.run("status", request_id)
        assert (code, "running, denoise_image" in line) == (0, True)
        code, [line], _ = command.run("cancel", request_id)
        assert (code, "stops within" in line) == (0, True)
        _, err = theirs.communicate(timeout=WAIT_S)
    assert theirs.returncode == 1
    assert "cancelled" in err.splitlines()[-1]


def test_status_tells_what_the_server_is_at(command, server, expected):
    code, out, err = command.run("status")
    assert (code, err) == (0, [])
    assert out[:2] == [f"{server.url} is ready", "preset toy, version 0.1.0"]
    [row] = [line.split() for line in out if "text2image" in line]
    assert row[3:6:2] == ["0", "0"]  # nothing waits, nothing runs
    assert int(row[7]) >= 1


def test_an_id_nobody_used_is_unknown(command):
    for name in ("fetch", "status", "cancel"):
        code, out, err = command.run(name, "nobody-knows-this")
        assert code == 1
        assert "know" in " ".join((*out, *err))
