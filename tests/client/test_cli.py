# SPDX-License-Identifier: Apache-2.0
"""`predict2` from the command line to the files, against a server that speaks Triton's protocol."""

import json
import signal
import subprocess
import sys

import av
import grpc
import numpy as np
import pytest
from PIL import Image

from predict2_client import patience
from predict2_client.cli import main

PROGRAM = [sys.executable, "-m", "predict2_client.cli"]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREDICT2_URL", raising=False)


@pytest.fixture
def run(server, capsys):
    """Run a command against the server; gives code, stdout and stderr."""

    def run(command, *argv):
        code = main([command, *argv, *([] if command == "sheet" else ["--url", server.url])])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def refuse(request, context):
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "seed is odd\nvery odd")
    yield


def make_clip(frames=5):
    """An mp4, for a server that has to send a real one."""
    with av.open("made.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 64, 112, "yuv420p"
        for level in range(frames):
            frame = np.full((64, 112, 3), 40 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with open("made.mp4", "rb") as file:
        return file.read()


def test_picture_and_its_side_file_are_written(run, tmp_path):
    code, out, err = run("text2image", "--prompt", "a ball", "--save-path", "new/a.png")
    assert (code, out) == (0, "new/a.png\n")
    assert "denoise 1/2" not in err  # the first of two steps is no news, the stage's end would be
    assert (tmp_path / "new/a.png").read_bytes() == b"picture"
    side = json.loads((tmp_path / "new/a.json").read_text())
    assert side["request"]["prompt"] == "a ball"
    assert side["request"]["output_format"] == "png"


def test_default_output_is_the_originals(run, tmp_path):
    assert run("text2image")[0] == 0
    assert (tmp_path / "output/generated_image.jpg").exists()
    assert (tmp_path / "output/generated_image.json").exists()


def test_input_is_sent_with_video2world(run, server, tmp_path):
    (tmp_path / "in.webp").write_bytes(b"webp")
    assert run("video2world", "--input_path", "in.webp", "--prompt", "on")[0] == 0
    assert b"webp" in server.requests[0].raw_input_contents


@pytest.mark.parametrize(
    ("command", "argv", "reason"),
    [
        ("text2image", ["--save_path", "a.mp4"], "must end in .jpg"),
        ("text2world", ["--save_path", "a.jpg"], "must end in .mp4"),
        ("text2image", ["--prompt", ""], "prompt is empty"),
        ("text2image", ["--seed", "-1"], "seed -1 must be between"),
        ("text2image", ["--prompt", "\udcff"], "UTF-8"),
        ("video2world", ["--prompt", "on", "--input_path", "no.png"], "does not exist"),
        ("text2image", ["--batch_input_json", "no.json"], "can't be read"),
        ("sheet", ["no.mp4"], "does not exist"),
        ("sheet", ["no.mp4", "a.gif"], "must end in .png"),
    ],
)
def test_bad_input_ends_with_one_line_before_anything_is_sent(run, server, command, argv, reason):
    code, out, err = run(command, *argv)
    assert (code, out) == (1, "")
    assert reason in err
    assert err.startswith("predict2: ")
    assert err.count("\n") == 1
    assert server.requests == []


def test_output_that_is_the_input_is_refused(run, server, tmp_path):
    (tmp_path / "in.mp4").write_bytes(b"mp4")
    argv = ["--prompt", "on", "--input_path", "in.mp4", "--save_path", "./in.mp4"]
    assert "is the input" in run("video2world", *argv)[2]
    assert server.requests == []
    assert (tmp_path / "in.mp4").read_bytes() == b"mp4"


def test_refusal_of_the_server_is_one_line_and_no_file(run, server, tmp_path):
    server.stream = refuse
    assert run("text2image") == (1, "", "predict2: seed is odd very odd\n")
    assert list((tmp_path / "output").iterdir()) == []


def test_escape_codes_in_a_refusal_do_not_reach_the_terminal(run, server, respond):
    failure = respond.failure("INTERNAL", "out of \x1b[31mmemory\x07")
    server.stream = lambda request, context: iter((failure,))
    assert run("text2image")[2] == "predict2: out of ?[31mmemory?\n"


@pytest.mark.parametrize(("terminal", "shown"), [(True, "?[2J.png\n"), (False, "\x1b[2J.png\n")])
def test_only_a_terminal_is_spared_the_escape_codes_of_an_answer(run, monkeypatch, terminal, shown):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert run("text2image", "--save_path", "\x1b[2J.png")[1] == shown


def test_server_that_is_not_there_is_named(run, server):
    server.stop()
    code, _, err = run("text2image")
    assert code == 1
    assert f"the server at {server.url} is unavailable" in err
    assert "Traceback" not in err


def test_time_limit_ends_the_request(run, server, respond):
    server.stream = lambda request, context: server.ended_early.wait(10) or iter(())
    code, _, err = run("text2image", "--timeout", "0.2")
    assert (code, "time limit" in err) == (1, True)
    assert server.ended_early.wait(3)


def test_id_of_a_request_is_told_when_it_begins(run, server):
    _, _, err = run("text2image", "--request-id", "my-request")
    assert err.splitlines()[0] == "generated_image.jpg: request my-request"
    assert server.requests[0].id == "my-request"
    _, _, err = run("text2image")
    assert f"request {server.requests[1].id}" in err


def test_busy_server_is_told_in_one_line_with_how_to_wait(run, server):
    server.stream = lambda request, context: iter(("Exceeds maximum queue size",))
    code, _, err = run("text2image")
    assert (code, err.count("\n")) == (1, 1)
    assert "--retry-for" in err


def test_busy_server_is_waited_for_when_asked(run, server, respond, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    answers = ["Exceeds maximum queue size", respond.result()]
    server.stream = lambda request, context: iter((answers.pop(0),))
    code, _, err = run("text2image", "--retry-for", "60")
    assert code == 0
    assert "busy" in err.splitlines()[0]
    assert "trying again in" in err.splitlines()[0]


def test_terms_reach_the_server(run, server):
    run("text2image", "--lease", "12", "--timeout", "90")
    parameters = server.requests[0].parameters
    assert parameters["lease_s"].int64_param == 12
    assert 80e6 < parameters["timeout"].int64_param <= 90e6
    assert "priority" not in parameters


def test_batch_gives_way_to_others_and_waits_for_a_busy_server(
    run, server, respond, tmp_path, monkeypatch
):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)
    answers = ["Exceeds maximum queue size", respond.result(), respond.result()]
    server.stream = lambda request, context: iter((answers.pop(0),))
    (tmp_path / "batch.json").write_text('[{"prompt": "a"}, {"prompt": "b"}]')
    assert run("text2image", "--batch_input_json", "batch.json")[0] == 0
    assert [r.parameters["priority"].uint64_param for r in server.requests] == [2, 2, 2]
    first, again, second = (request.id for request in server.requests)
    assert first == again != second


def test_batch_does_not_wait_when_told_so(run, server, tmp_path):
    server.stream = lambda request, context: iter(("Exceeds maximum queue size",))
    (tmp_path / "batch.json").write_text('[{"prompt": "a"}, {"prompt": "b"}]')
    code, out, _ = run("text2image", "--batch_input_json", "batch.json", "--retry_for", "0")
    assert (code, "not run" in out) == (1, True)
    assert len(server.requests) == 1


def test_quiet_prints_nothing_and_needs_no_stream(run, server):
    assert run("text2image", "--quiet") == (0, "", "")
    assert server.requests[0].model_name == "text2image"


def test_resume_sends_nothing_for_what_is_already_made(run, server):
    run("text2image", "--prompt", "a")
    assert run("text2image", "--prompt", "a", "--resume")[:2] == (
        0,
        "output/generated_image.jpg\n",
    )
    assert len(server.requests) == 1
    run("text2image", "--prompt", "b", "--resume")
    assert len(server.requests) == 2


def test_server_address_may_come_from_the_environment(server, monkeypatch, capsys):
    monkeypatch.setenv("PREDICT2_URL", server.url)
    assert main(["ready"]) == 0
    assert capsys.readouterr().out == f"{server.url} is ready\n"


def test_ready_gives_up_after_its_limit(run, server):
    server.ready = False
    code, _, err = run("ready", "--timeout", "0.1")
    assert code == 1
    assert "no server is ready" in err


def test_batch_ends_with_a_table_and_a_code_that_tells_of_failures(run, server, respond, tmp_path):
    server.stream = lambda request, context: iter((respond.event(step=2, of=2), respond.result()))
    entries = [{"prompt": "a"}, {"prompt": "b", "output_image": "[b].gif"}, {"prompt": "c"}]
    (tmp_path / "batch.json").write_text(json.dumps(entries))
    code, out, err = run("text2image", "--batch_input_json", "batch.json", "--num_steps", "3")
    assert code == 1
    assert "[1/3] output_0.jpg: denoise 2/2" in err
    assert "[1/3] output_0.jpg done" in err
    assert "[2/3] output_1.jpg failed: output [b].gif must end in" in err
    rows = [line for line in out.splitlines() if "output_" in line]
    assert [("done" in row, "failed" in row) for row in rows] == [
        (True, False),
        (False, True),
        (True, False),
    ]
    assert json.loads((tmp_path / "output_2.json").read_text())["request"]["num_steps"] == 3


def test_batch_item_without_a_prompt_does_not_get_the_sample_prompt(run, server, tmp_path):
    (tmp_path / "batch.json").write_text('[{"output_image": "a.jpg"}]')
    code, out, _ = run("text2image", "--batch_input_json", "batch.json")
    assert (code, server.requests) == (1, [])
    assert "prompt is missing" in out


def test_quiet_batch_tells_of_failures_alone(run, tmp_path):
    (tmp_path / "batch.json").write_text('[{"prompt": "a"}, {}]')
    code, out, err = run("text2image", "--batch_input_json", "batch.json", "--quiet")
    assert (code, out) == (1, "")
    assert err == "[2/2] output_1.jpg failed: prompt is missing\n"


def look(path):
    with Image.open(path) as picture:
        return picture.format, picture.size


def test_sheet_of_a_clip_lies_beside_it(run):
    make_clip()
    assert run("sheet", "made.mp4") == (0, "made_sheet.png\n", "")
    assert run("sheet", "made.mp4", "new/s.jpg", "--columns", "5")[0] == 0
    assert look("made_sheet.png")[0] == "PNG"
    assert look("new/s.jpg") == ("JPEG", (5 * 114 - 2, 64))


def test_demo_makes_a_picture_a_clip_and_its_sheet(run, server, respond, tmp_path):
    clip = make_clip()
    server.stream = lambda request, context: iter((respond.result(clip),))
    code, out, _ = run("demo", "--output-dir", "here")
    assert code == 0
    assert out.splitlines() == [
        "picture: here/picture.jpg",
        "clip: here/clip.mp4",
        "contact sheet: here/clip_sheet.png",
    ]
    assert (tmp_path / "here/clip.mp4").read_bytes() == clip
    assert look("here/clip_sheet.png")[0] == "PNG"


@pytest.mark.parametrize("batch", [False, True])
def test_ctrl_c_cancels_on_the_server_and_leaves_no_file(server, respond, tmp_path, batch):
    def stream(request, context):
        yield respond.event(step=2, of=2)
        server.ended_early.wait(10)

    server.stream = stream
    argv = ["text2image", "--url", server.url]
    if batch:
        (tmp_path / "batch.json").write_text('[{"prompt": "a"}, {"prompt": "b"}]')
        argv += ["--batch_input_json", "batch.json"]
    process = subprocess.Popen(
        [*PROGRAM, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stderr.readline()  # of the first step
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert server.ended_early.wait(3)
    assert "Traceback" not in err
    assert ("cancelled" in out and "not run" in out) if batch else "predict2: cancelled" in err
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "batch.json"] == []


def test_killed_program_cancels_on_the_server(server, respond):
    def stream(request, context):
        yield respond.event(step=2, of=2)
        server.ended_early.wait(10)

    server.stream = stream
    process = subprocess.Popen(
        [*PROGRAM, "text2image", "--url", server.url], stderr=subprocess.PIPE, text=True
    )
    process.stderr.readline()
    process.kill()
    process.communicate(timeout=10)
    assert server.ended_early.wait(3)


def test_importing_the_program_pulls_in_nothing_heavy():
    heavy = "torch onnx onnxruntime tensorrt transformers av PIL rich"
    code = (
        "import sys, predict2_client.cli\n"
        f"print(*[name for name in '{heavy}'.split() if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == ""
