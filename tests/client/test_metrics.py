# SPDX-License-Identifier: Apache-2.0
"""What is read from a server's metrics."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from predict2_client import metrics
from predict2_client.metrics import Sample
from predict2_spec.errors import InvalidRequestError

TEXT = """\
# HELP nv_inference_request_success Number of successful inference requests
# TYPE nv_inference_request_success counter
nv_inference_request_success{model="text2image",version="1"} 7
nv_inference_pending_request_count{model="text2image",version="1"} 2
nv_inference_pending_request_count{model="vae_decoder",version="1"} 5
predict2_requests_total{model="text2image",outcome="ok"} 4
predict2_requests_total{outcome="blocked",model="text2image"} 1
predict2_requests_total{model="text2image",outcome="cancelled"} 2
predict2_requests_total{model="text2image",outcome="failed"} 3
predict2_requests_total{model="generate",outcome="ok"} 1e+06
predict2_running{model="text2image"} 1
predict2_build_info{preset="toy",version="0.1.0"} 1
nv_energy_consumption 12.5
odd{label="a \\"quoted\\" }"} 3
this is no sample
nv_broken{model="x"} many
"""


def test_samples_are_read_and_what_is_none_is_left_out():
    samples = list(metrics.read_samples(TEXT))
    assert Sample("nv_energy_consumption", {}, 12.5) in samples
    assert Sample("odd", {"label": r"a \"quoted\" }"}, 3.0) in samples
    assert len(samples) == 12


def test_table_has_the_public_models_that_are_served():
    heads, rows = metrics.table(list(metrics.read_samples(TEXT)))
    assert heads == ["model", "waiting", "running", "succeeded", "failed", "ended otherwise"]
    assert rows == [
        ["text2image", "2", "1", "4", "3", "1 blocked, 2 cancelled"],
        ["generate", "0", "0", "1e+06", "0", ""],
    ]


def test_build_is_told_once_for_all_processes():
    assert metrics.builds(list(metrics.read_samples(2 * TEXT))) == ["preset toy, version 0.1.0"]
    assert metrics.builds([]) == []


@pytest.mark.parametrize(
    ("given", "url", "address"),
    [
        ("", "example:8001", "http://example:8002/metrics"),
        ("", "[::1]:8001", "http://[::1]:8002/metrics"),
        ("other:9", "example:8001", "http://other:9/metrics"),
        ("https://x/metrics", "example:8001", "https://x/metrics"),
    ],
)
def test_address_is_given_or_guessed_from_the_servers(given, url, address):
    assert metrics.metrics_address(given, url) == address


@pytest.mark.parametrize("given", ["file:///etc/passwd", "ftp://x/metrics", "http://"])
def test_address_that_is_not_of_a_web_server_is_refused(given):
    with pytest.raises(InvalidRequestError, match="metrics url"):
        metrics.metrics_address(given, "example:8001")


@pytest.fixture
def answer():
    """answer(status, text) -> host:port of an HTTP server that answers so."""
    running = []

    def answer(status, text):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        running.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=running[-1].serve_forever).start()
        return f"127.0.0.1:{running[-1].server_port}"

    yield answer
    for server in running:
        server.shutdown()
        server.server_close()


def test_samples_come_from_a_real_server(answer, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    address = metrics.metrics_address(answer(200, TEXT.encode() + b"\xff"), "")
    assert metrics.fetch_samples(address) == list(metrics.read_samples(TEXT))


def test_no_server_and_a_server_that_refuses_are_the_same(answer):
    assert metrics.fetch_samples("http://127.0.0.1:1/metrics") is None
    assert metrics.fetch_samples(f"http://{answer(404, b'')}/metrics") is None
