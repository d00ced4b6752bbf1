# SPDX-License-Identifier: Apache-2.0
"""`predict2 best-of-n` from the command line to the files, against a server that speaks Triton's protocol."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor

from predict2_client import best_of_n, report
from predict2_client.cli import main
from predict2_spec.critic import score

YES, NO = "<answer>Yes</answer>", "<answer>No</answer>"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in.png").write_bytes(b"png")


@pytest.fixture
def run(server, respond, capsys):
    """Run the command against a server whose clips hold their own seed; gives code, stdout and stderr."""
    server.scores = {}  # of the clips by seed; 1 where nothing is said

    def stream(request, context):
        yield respond.event(step=2, of=2)
        yield respond.result(f"clip {values(request)['seed']}".encode())

    def critic(request, context):
        asked = values(request)
        seed = int(asked["video"].split()[-1])
        answers = server.scores.get(seed, (NO,) * asked["num_trials"])
        return respond.judgement(answers, score(answers))

    server.stream, server.critic = stream, critic

    def run(*argv, generate=True):
        given = ["--input_path", "in.png", "--prompt", "on"] if generate else ["--skip_generation"]
        code = main(["best-of-n", *given, "--save_path", "out", "--url", server.url, *argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def values(request):
    """name -> value of a request; unset ones by their defaults."""
    found = {"seed": 0}
    for tensor, content in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "INT64":
            found[tensor.name] = int(np.frombuffer(content, np.int64)[0])
        elif tensor.datatype == "BYTES":
            found[tensor.name] = deserialize_bytes_tensor(content).item().decode()
        else:
            found[tensor.name] = content
    return found


def asked(server, model):
    return [values(request) for request in server.requests if request.model_name == model]


def ranking():
    return json.loads(Path("out/ranking.json").read_text())


def files():
    return sorted(path.name for path in Path("out").iterdir())


def abort(status, message):
    def fail(request, context):
        context.abort(status, message)

    return fail


def test_clips_their_judgements_and_the_ranking_lie_in_the_folder(run, server):
    server.scores = {3: (YES, NO, YES), 4: (NO, NO, "?")}
    code, out, err = run("--seed", "3", "--num_critic_trials", "3")
    names = (
        "in_seed3.json in_seed3.mp4 in_seed3_score033.html in_seed3_score033.json "
        "in_seed4.json in_seed4.mp4 in_seed4_score100.html in_seed4_score100.json "
        "index.html ranking.json"
    )
    assert (code, files()) == (0, names.split())
    assert Path("out/in_seed4.mp4").read_bytes() == b"clip 4"
    assert json.loads(Path("out/in_seed4.json").read_text())["request"]["seed"] == 4
    assert Path("out/in_seed3_score033.json").read_text() == json.dumps([YES, NO, YES], indent=2)
    assert [(row["file"], row["seed"], row["score"]) for row in ranking()] == [
        ("in_seed4.mp4", 4, 1.0),
        ("in_seed3.mp4", 3, 1 / 3),
    ]
    assert ranking()[0]["responses"] == [NO, NO, "?"]
    table = [line.split() for line in out.splitlines() if ".mp4" in line]
    assert [row[1::2] for row in table] == [
        ["1", "4", "in_seed4.mp4", "1.00", "2", "0", "1"],
        ["2", "3", "in_seed3.mp4", "0.33", "1", "2", "0"],
    ]
    assert out.splitlines()[-1] == "out/index.html"
    assert "in_seed4.mp4: denoise 2/2" in err
    assert "in_seed4.mp4: judge 1/1" in err
    assert "in_seed4.mp4: score 1.00" in err


def test_requests_are_video2worlds_with_the_seeds_in_a_row(run, server):
    run("--num_generations", "3", "--seed", "7", "--num_steps", "5", "--prompt_prefix", "A robot. ")
    requests = asked(server, "generate")
    assert sorted(request["seed"] for request in requests) == [7, 8, 9]
    for request in requests:
        assert (request["task"], request["image"]) == ("video2world", b"png")
        assert (request["num_steps"], request["prompt"]) == (5, "A robot. on")


def test_critic_judges_a_clip_with_the_clips_own_seed(run, server):
    run("--seed", "7", "--num_critic_trials", "2")
    questions = asked(server, "critic")
    assert {(q["seed"], q["video"]) for q in questions} == {(7, b"clip 7"), (8, b"clip 8")}
    assert {q["num_trials"] for q in questions} == {2}


def test_equal_scores_keep_the_order_of_their_seeds_whoever_is_ready_first(run, server):
    first = server.stream

    def stream(request, context):
        time.sleep(0.3 if values(request)["seed"] == 0 else 0)
        yield from first(request, context)

    server.stream = stream
    assert run("--num_generations", "4", "--parallel", "4")[0] == 0
    assert [row["seed"] for row in ranking()] == [0, 1, 2, 3]


@pytest.mark.parametrize(("parallel", "together"), [(1, 1), (3, 3)])
def test_so_many_clips_are_in_the_making_at_a_time(run, server, respond, parallel, together):
    running, most = [], []
    met = threading.Barrier(together)

    def stream(request, context):
        running.append(request)
        met.wait(5)
        most.append(len(running))
        met.wait(5)
        running.pop()
        yield respond.result(b"clip 0")

    server.stream = stream
    assert run("--num_generations", "3", "--parallel", str(parallel))[0] == 0
    assert most == [together] * 3


@pytest.mark.parametrize(
    ("score", "digits"),
    [(0.0, "000"), (1 / 3, "033"), (2 / 3, "066"), (0.7, "070"), (0.999, "099"), (1.0, "100")],
)
def test_score_in_a_file_name_is_cut_off_to_whole_hundredths(run, server, respond, score, digits):
    server.critic = lambda request, context: respond.judgement((NO,), score)
    run("--num_generations", "1")
    assert Path(f"out/in_seed0_score{digits}.json").exists()
    assert Path(f"out/in_seed0_score{digits}.html").exists()


def test_judgement_of_an_earlier_run_is_replaced_and_nothing_else(run, server):
    server.scores = {0: (YES,), 1: (YES,)}
    run()
    others = ["in_seed0_score000.mp4", "in_seed0_score05.json", "in_seed0_score050.txt"]
    for name in others:
        Path("out", name).write_bytes(b"mine")
    server.scores = {}
    run("--num_generations", "1")
    # What goes with a clip of such a name is that clip's; seed 1 wasn't asked for this time.
    kept = ("in_seed0_score000", "in_seed0_score100", "in_seed1_score000")
    mine = {f"{name}.{kind}" for name in kept for kind in ("html", "json")}
    assert {name for name in files() if "_score" in name} == {*others, *mine}


def test_clips_that_are_there_are_judged_without_a_prompt(run, server):
    Path("out").mkdir()
    for name, seed in (("b_seed9.mp4", 9), ('it\'s "50%" größer.MP4', 5)):
        Path("out", name).write_bytes(f"clip {seed}".encode())
    Path("out/note.txt").touch()
    server.scores = {9: (YES,), 5: (NO,)}
    assert run("--seed", "6", generate=False)[0] == 0
    assert asked(server, "generate") == []
    assert [(row["file"], row["seed"]) for row in ranking()] == [
        ('it\'s "50%" größer.MP4', None),
        ("b_seed9.mp4", 9),
    ]
    assert {q["seed"] for q in asked(server, "critic")} == {6, 9}
    assert "it%27s%20%2250%25%22%20gr%C3%B6%C3%9Fer.MP4" in Path("out/index.html").read_text()
    assert Path('out/it\'s "50%" größer_score100.html').exists()


def test_folder_without_clips_is_refused(run):
    code, _, err = run(generate=False)
    assert code == 1
    assert err == (
        "predict2: folder out holds no *.mp4 to judge; name another --save_path, "
        "or leave out --skip_generation\n"
    )


@pytest.mark.parametrize(
    ("stem", "seed"),
    [
        ("in_seed12", 12),
        ("in_seed1_seed2", 2),
        ("in", report.NO_SEED),
        ("in_seed", report.NO_SEED),
        ("in_seed5b", report.NO_SEED),
        (f"in_seed{2**32}", report.NO_SEED),
    ],
)
def test_seed_of_a_clip_is_read_from_its_name(tmp_path, stem, seed):
    (tmp_path / f"{stem}.mp4").touch()
    assert [candidate.seed for candidate in best_of_n.present(tmp_path)] == [seed]


@pytest.mark.parametrize(
    ("record", "seed"),
    [
        ('{"seed": 7}', 7),
        ('{"seed": true}', 5),
        ('{"seed": "7"}', 5),
        ('{"seed": -2}', report.NO_SEED),
        ("{}", 5),
        ('["seed"]', 5),
        ("no JSON", 5),
    ],
)
def test_seed_in_the_side_file_comes_before_that_in_the_name(tmp_path, record, seed):
    (tmp_path / "in_seed5.mp4").touch()
    (tmp_path / "in_seed5.json").write_text(record)
    assert [candidate.seed for candidate in best_of_n.present(tmp_path)] == [seed]


def test_closed_stderr_does_not_end_the_run(server, run, monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    assert run()[0] == 0
    assert [row["error"] for row in ranking()] == ["", ""]


def test_escape_codes_of_the_server_and_of_names_do_not_reach_the_terminal(run, server, respond):
    Path("\x1b[2J.png").write_bytes(b"png")
    make = server.stream

    def stream(request, context):
        if values(request)["seed"] == 1:
            yield respond.failure("INTERNAL", "\x1b]0;mine\x07")
        yield respond.event("\x9b2J", step=2, of=2)
        yield from make(request, context)

    server.stream = stream
    _, out, err = run("--input_path", "\x1b[2J.png")
    assert "?[2J_seed1.mp4: ?]0;mine?\n" in err
    assert "?[2J_seed0.mp4: ?2J 2/2" in err
    table = out.removesuffix("out/index.html\n")
    assert (table.count("?[2J"), set(table + err) & set("\x1b\x07\x9b")) == (2, set())


def test_refused_generation_does_not_stop_the_others(run, server, respond):
    first = server.stream

    def stream(request, context):
        if values(request)["seed"] == 1:
            return iter((respond.failure("INVALID_ARGUMENT", "blocked: guardrail x refuses it"),))
        return first(request, context)

    server.stream = stream
    code, out, err = run("--num_generations", "3")
    assert code == 1
    assert [(row["seed"], row["error"]) for row in ranking()] == [
        (0, ""),
        (2, ""),
        (1, "blocked: guardrail x refuses it"),
    ]
    assert "in_seed1.mp4: blocked: guardrail x refuses it" in err
    row = next(line for line in out.splitlines() if "in_seed1.mp4" in line)
    assert ("blocked" in row, "failed" in out, "guardrail" in out) == (True, False, False)
    assert "blocked: guardrail x refuses it" in Path("out/index.html").read_text()
    assert not Path("out/in_seed1.mp4").exists()


def test_clip_that_can_not_be_judged_stays_and_does_not_stop_the_others(run, server):
    first = server.critic
    fail = abort(grpc.StatusCode.INTERNAL, "critic is ill")
    server.critic = lambda r, c: fail(r, c) if values(r)["video"] == b"clip 0" else first(r, c)
    assert run()[0] == 1
    assert [(row["seed"], row["error"]) for row in ranking()] == [(1, ""), (0, "critic is ill")]
    assert Path("out/in_seed0.mp4").read_bytes() == b"clip 0"
    assert '<video controls playsinline preload="metadata" src="in_seed0.mp4">' in (
        Path("out/index.html").read_text()
    )


def test_server_without_a_critic_is_told_in_its_own_words_and_the_clips_stay(run, server):
    server.critic = abort(grpc.StatusCode.UNAVAILABLE, "no reasoner here; ask for one")
    code, _, err = run()
    assert code == 1
    reason = f"the server at {server.url} can't do this: no reasoner here; ask for one"
    assert f"in_seed0.mp4: {reason}" in err
    assert err.endswith("the same command with --resume continues\n")
    assert {"in_seed0.mp4", "in_seed1.mp4"} < set(files())


def test_server_without_a_critic_is_asked_for_no_further_clips(run, server):
    judge = server.critic
    server.critic = abort(grpc.StatusCode.UNAVAILABLE, "no reasoner here")
    argv = ["--num_generations", "4", "--parallel", "1"]
    code, out, err = run(*argv)
    assert (code, len(asked(server, "generate")), len(asked(server, "critic"))) == (1, 1, 1)
    assert [row["error"] for row in ranking()][1:] == ["not run"] * 3
    assert (out.count("failed"), out.count("not run")) == (1, 3)
    assert "in_seed3.mp4: not run" in err
    server.critic = judge
    assert run(*argv, "--resume")[0] == 0
    assert [request["seed"] for request in asked(server, "generate")] == [0, 1, 2, 3]


def test_no_clip_at_all_is_an_error_of_its_own(run, server, respond):
    failure = respond.failure("INTERNAL", "out of memory")
    server.stream = lambda request, context: iter((failure,))
    code, out, err = run("--num_generations", "3")
    assert (code, out, files()) == (1, "", [])
    assert err.count("in_seed") == 3
    assert err.splitlines()[-1] == (
        "predict2: no clip came about; the first failed because: out of memory"
    )


def test_run_without_any_clip_keeps_the_report_of_an_earlier_one(run, server, respond):
    run()
    before = {name: Path("out", name).read_bytes() for name in files()}
    server.stream = lambda request, context: iter((respond.failure("INTERNAL", "no"),))
    assert run("--num_steps", "3")[0] == 1
    assert {name: Path("out", name).read_bytes() for name in files()} == before


def test_old_clip_under_the_name_of_a_failed_one_is_not_shown_as_its_result(run, server, respond):
    run("--num_generations", "1")
    make = server.stream

    def stream(request, context):
        if values(request)["seed"] == 0:
            return iter((respond.failure("INTERNAL", "no"),))
        return make(request, context)

    server.stream = stream
    run("--num_steps", "3")
    assert Path("out/in_seed0.mp4").exists()
    page = Path("out/index.html").read_text()
    assert (page.count("<video"), 'src="in_seed1.mp4"' in page) == (1, True)


def test_quiet_prints_failures_alone(run, server, respond):
    server.unary = lambda request, context: respond.result(b"clip 0")
    assert run("--quiet") == (0, "", "")
    server.critic = abort(grpc.StatusCode.INTERNAL, "critic is ill")
    code, out, err = run("--quiet", "--num_generations", "1")
    assert (code, out, err) == (1, "", "in_seed0.mp4: critic is ill\n")


def test_resume_makes_and_judges_only_what_is_missing(run, server):
    server.scores = {0: (YES,), 1: (NO,)}
    run("--num_critic_trials", "1")
    server.requests.clear()
    assert run("--num_critic_trials", "1", "--num_generations", "3", "--resume")[0] == 0
    assert [request["seed"] for request in asked(server, "generate")] == [2]
    assert [question["seed"] for question in asked(server, "critic")] == [2]
    assert [(row["seed"], row["score"]) for row in ranking()] == [(1, 1.0), (2, 1.0), (0, 0.0)]


@pytest.mark.parametrize(
    ("argv", "made"),
    [(["--num_critic_trials", "3"], []), (["--num_critic_trials", "2", "--num_steps", "9"], [0])],
    ids=["more opinions", "another request"],
)
def test_resume_judges_again_what_changed(run, server, argv, made):
    run("--num_generations", "1", "--num_critic_trials", "2")
    server.requests.clear()
    run("--num_generations", "1", *argv, "--resume")
    assert [request["seed"] for request in asked(server, "generate")] == made
    assert len(asked(server, "critic")) == 1


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '["a"]'])
def test_damaged_judgement_is_made_again(run, server, content):
    run("--num_generations", "1", "--num_critic_trials", "2")
    Path("out/in_seed0_score100.json").write_text(content)
    server.requests.clear()
    run("--num_generations", "1", "--num_critic_trials", "2", "--resume")
    assert [len(asked(server, model)) for model in ("generate", "critic")] == [0, 1]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--seed", str(2**32 - 1)], f"seed {2**32} must be between"),
        (["--num_steps", "0"], "num_steps 0"),
        (["--input_path", "no.png"], "does not exist"),
        (["--save_path", "in.png"], "the folder of output"),
        (["--prompt", ""], "prompt is empty"),
    ],
)
def test_bad_input_ends_with_one_line_before_anything_is_sent(run, server, argv, reason):
    code, out, err = run(*argv)
    assert (code, out, server.requests) == (1, "", [])
    assert reason in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("during", ["generation", "judgement"])
def test_ctrl_c_cancels_on_the_server_and_leaves_what_is_done(run, server, respond, during):
    make, judge, waiting = server.stream, server.critic, threading.Event()

    def wait():
        waiting.set()
        server.ended_early.wait(60)

    def stream(request, context):
        if values(request)["seed"] == 1 and during == "generation":
            wait()
            yield respond.failure("CANCELLED", "the request was cancelled")
        yield from make(request, context)

    def critic(request, context):
        if values(request)["video"] == b"clip 1" and during == "judgement":
            wait()
        return judge(request, context)

    server.stream, server.critic = stream, critic
    argv = ["best-of-n", "--input_path", "in.png", "--prompt", "on", "--save_path", "out"]
    argv += ["--parallel", "1", "--num_generations", "3", "--url", server.url]
    command = [sys.executable, "-m", "predict2_client.cli", *argv]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    assert waiting.wait(60)  # a hang's limit: the machine may be busy
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert server.ended_early.wait(60)
    assert "Traceback" not in err
    assert [(row["seed"], row["error"]) for row in ranking()] == [
        (0, ""),
        (1, "interrupted"),
        (2, "interrupted"),
    ]
    assert Path("out/in_seed0_score100.html").exists()
    assert Path("out/in_seed1.mp4").exists() == (during == "judgement")
    assert not Path("out/in_seed2.mp4").exists()
    assert "interrupted" in out


def test_ctrl_c_before_any_clip_keeps_the_report_of_an_earlier_run(run, monkeypatch):
    run()
    before = Path("out/index.html").read_bytes()

    def nothing(candidates, work, clients, tell):
        clips = [report.Clip(path=c.path, seed=c.seed, score=0.0, responses=()) for c in candidates]
        return clips, True

    monkeypatch.setattr(best_of_n, "judge_all", nothing)
    assert run() == (130, "", "predict2: cancelled\n")
    assert Path("out/index.html").read_bytes() == before


def test_input_with_an_odd_name_gives_its_name_to_the_clips(run, server):
    Path("a b%20 [c].v2.png").write_bytes(b"png")
    assert run("--input_path", "a b%20 [c].v2.png", "--num_generations", "1")[0] == 0
    assert "a b%20 [c].v2_seed0.mp4" in files()
    assert "a b%20 [c].v2_seed0_score100.json" in files()
    assert json.loads(Path("out/a b%20 [c].v2_seed0.json").read_text())["task"]
