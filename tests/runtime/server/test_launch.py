# SPDX-License-Identifier: Apache-2.0
import http.server
import subprocess
import threading
from functools import partial

import pytest

from predict2_runtime.server.launch import Ports, Server, stop, wait_until_ready


@pytest.fixture
def server(tmp_path):
    """A process that runs until it is told to end, where a Triton would be."""
    process = subprocess.Popen(["sleep", "100"], start_new_session=True)
    yield partial(Server, process, run_folder=tmp_path, shared_memory="predict2-test-none-")
    process.kill()
    process.wait()


@pytest.fixture
def port():
    """Where something answers 200, whatever is asked."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as answering:
        thread = threading.Thread(target=answering.serve_forever, args=(0.01,))
        thread.start()
        yield answering.server_port
        answering.shutdown()
        thread.join()


def test_it_is_asked_itself_whether_it_is_ready_and_no_proxy(server, port, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    assert wait_until_ready(server(ports=Ports("127.0.0.1", port, 1, 2)), 5, lambda: False)


def test_it_ends_though_it_cannot_be_noted_that_it_is_to(server, tmp_path):
    started = server(ports=Ports("127.0.0.1", 0, 0, 0), run_folder=tmp_path / "gone")
    stop(started, 5, lambda: False)
    assert started.process.poll() is not None
