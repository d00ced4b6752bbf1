# SPDX-License-Identifier: Apache-2.0
"""`predict2 fetch`, `cancel` and `status`, against a server that speaks Triton's protocol."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from predict2_client.cli import main
from predict2_spec.results import Event, Failure
from predict2_spec.tracking import RequestState

DONE = RequestState("done", kept_s=1800.0)
RUNNING = RequestState("running", Event("denoise", 3, 9, 1.5, eta_s=4.2))
FAILED = RequestState("failed", failure=Failure("INTERNAL", "out of \x1b memory"))


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREDICT2_URL", raising=False)
    monkeypatch.setenv("PREDICT2_METRICS_URL", "127.0.0.1:1")  # where nobody is


@pytest.fixture
def run(server, capsys):
    def run(*argv):
        code = main([*argv, "--url", server.url])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def knows(server, respond):
    """knows(state, media_type): what the server says of every request."""

    def knows(state, media_type="video/mp4"):
        def tracking(request_id, action):
            metadata = dataclasses.replace(respond.metadata, media_type=media_type)
            fetched = action == "fetch" and state.state == "done"
            return respond.state(state, respond.result(b"clip", metadata) if fetched else None)

        server.tracking = tracking

    return knows


@pytest.mark.parametrize(
    ("media_type", "suffix"), [("video/mp4", ".mp4"), ("image/jpeg", ".jpg"), ("image/png", ".png")]
)
def test_fetched_result_is_named_after_its_request_and_its_kind(run, knows, media_type, suffix):
    knows(DONE, media_type)
    assert run("fetch", "my.request")[:2] == (0, f"output/my.request{suffix}\n")
    assert Path(f"output/my.request{suffix}").read_bytes() == b"clip"
    side = json.loads(Path("output/my.request.json").read_text())
    assert side["prompt"] == "a ball"
    assert "request" not in side


def test_fetched_result_goes_where_it_is_told(run, knows):
    knows(DONE)
    assert run("fetch", "my-request", "--save-path", "new/a")[:2] == (0, "new/a.mp4\n")
    assert Path("new/a.mp4").exists()


def test_wrong_extension_of_a_fetched_result_names_the_right_one(run, knows):
    knows(DONE)
    code, _, err = run("fetch", "my-request", "--save_path", "a.png")
    assert (code, err) == (1, "predict2: output a.png must end in .mp4\n")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (RequestState("unknown"), "knows no request my-request"),
        (FAILED, "predict2: out of ? memory"),
    ],
)
def test_fetch_of_nothing_says_why_in_one_line(run, knows, state, words):
    knows(state)
    code, out, err = run("fetch", "my-request")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert words in err


def test_ctrl_c_of_fetch_cancels_nothing_and_says_so(server, knows):
    knows(RUNNING)
    command = [sys.executable, "-m", "predict2_client.cli", "fetch", "my-request"]
    process = subprocess.Popen(
        [*command, "--url", server.url], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not server.asked:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "predict2 cancel my-request" in err
    assert ("my-request", "cancel") not in server.asked


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        (RUNNING, 0, "stops within a solver step"),
        (DONE, 0, "was finished before; `predict2 fetch my-request`"),
        (FAILED, 0, "had ended before"),
        (RequestState("unknown"), 1, "isn't known"),
    ],
)
def test_cancel_tells_what_it_found(run, server, knows, state, code, words):
    knows(state)
    assert run("cancel", "my-request")[0] == code
    assert words in run("cancel", "my-request")[1]
    assert set(server.asked) == {("my-request", "cancel")}


@pytest.mark.parametrize(
    ("state", "code", "words"),
    [
        (RUNNING, 0, "running, denoise 3/9, 1.5 s, some 4 s left"),
        (DONE, 0, "done; `predict2 fetch my-request` brings its result for 30 min yet"),
        (FAILED, 0, "failed: out of"),
        (RequestState("unknown"), 1, "unknown: "),
        (RequestState("done", failure=Failure("NOT_FOUND", "not kept")), 0, "done: not kept"),
    ],
)
def test_status_of_a_request_changes_nothing(run, server, knows, state, code, words):
    knows(state)
    found, out, _ = run("status", "my-request")
    assert (found, out.startswith(f"request my-request: {words}")) == (code, True)
    assert server.asked == [("my-request", "look")]


def test_status_of_a_server_without_metrics_says_where_they_were_sought(run, server):
    code, out, err = run("status")
    assert (code, out) == (0, f"{server.url} is ready\n")
    assert err == "no metrics at http://127.0.0.1:1/metrics; name their place with --metrics-url\n"


def test_status_of_a_server_that_is_not_ready_is_a_failure(run, server):
    server.ready = False
    assert run("status")[:2] == (1, f"{server.url} is not ready\n")
    server.stop()
    assert run("status")[0] == 1


@pytest.mark.parametrize("name", ["fetch", "cancel", "status"])
def test_id_that_can_not_be_one_is_refused(run, server, name):
    code, _, err = run(name, "../x")
    assert (code, "request id '../x' must be" in err) == (1, True)
    assert server.asked == []
