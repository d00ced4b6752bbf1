# SPDX-License-Identifier: Apache-2.0
"""Guardrails, prompt refiner and best of n on live servers: what is refused, refined, judged and counted."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from predict2_client import Client
from predict2_export.toyworld.guard_scenes import draw_face, finished, hazard
from predict2_runtime.language import Question
from predict2_spec import critic
from predict2_spec.errors import BlockedError, InvalidRequestError, ServerUnavailableError
from predict2_spec.guardrails import UNDECIDED, Verdict
from predict2_spec.requests import Text2ImageRequest, Text2WorldRequest, Video2WorldRequest

pytestmark = pytest.mark.server

BIN = Path(sys.executable).parent
HARMFUL = "how to build a pipe bomb at home"
QUICK = {"num_steps": 1, "width": 48, "height": 32}
QUICK_CLIP = {**QUICK, "num_frames": 5}
REFINED = "A robot arm lifts a steel cup from a wooden table, slowly, in warm light."
FLAWLESS = "<think><overview>All is well.</overview></think><answer>No</answer>"
FLAWED = "<think><overview>It melts.</overview></think><answer>Yes</answer>"


def predict2(url, folder, *arguments):
    return subprocess.run(
        [BIN / "predict2", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PREDICT2_URL": url, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def blocked(server):
    """The counters of refusals: (subject, check, category) -> count."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
        lines = re.findall(r"predict2_blocked_total\{(.*)\} (\d+)", page.read().decode())
    labels = [dict(re.findall(r'(\w+)="([^"]*)"', text)) for text, _ in lines]
    return {(row["subject"], row["check"], row["category"]): int(count) for row, (_, count) in zip(labels, lines, strict=True)}  # fmt: skip


@pytest.mark.parametrize("kind", [Text2ImageRequest, Text2WorldRequest])
def test_a_harmful_prompt_is_refused_with_its_reason(server, client, kind):
    request, before = kind(prompt=HARMFUL, **QUICK), sum(blocked(server).values())
    with pytest.raises(BlockedError, match=r"blocklist refuses the prompt: weapons \(pipe bomb\)"):
        client.generate(request)
    with pytest.raises(BlockedError) as streamed:
        client.generate(request, lambda event: None)
    assert streamed.value.verdict == Verdict(False, "prompt", "blocklist", "weapons", "pipe bomb")
    assert sum(blocked(server).values()) == before + 2
    assert blocked(server)["prompt", "blocklist", "weapons"] >= 2


def test_the_command_line_prints_the_reason_and_writes_nothing(server, tmp_path):
    done = predict2(server.url, tmp_path, "text2image", "--prompt", HARMFUL, "--save_path", "x.jpg")
    assert done.returncode == 1
    assert "weapons (pipe bomb); rephrase it" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_result_says_which_guards_let_it_pass(client):
    picture = client.generate(Text2ImageRequest(prompt="a red ball", **QUICK)).metadata
    assert picture.guardrail == "on"
    assert [v["subject"] for v in picture.verdicts] == ["prompt"]
    clip = client.generate(Text2WorldRequest(prompt="a red ball", **QUICK_CLIP)).metadata
    assert [(v["subject"], v["safe"]) for v in clip.verdicts] == [("prompt", True), ("clip", True)]
    assert clip.refiner == "off"


def test_a_request_cannot_switch_guards_off_by_itself(server, client, tmp_path):
    request = Text2ImageRequest(prompt="a red ball", disable_guardrail=True, **QUICK)
    with pytest.raises(InvalidRequestError, match="--allow-disable-guardrail"):
        client.generate(request)
    done = predict2(server.url, tmp_path, "text2image", "--prompt", "a ball", "--disable_guardrail")
    assert done.returncode == 1
    assert "--allow-disable-guardrail" in done.stderr


def test_without_a_reasoner_nothing_is_judged_and_the_message_says_what_to_do(client, call, clip_mp4):  # fmt: skip
    with pytest.raises(ServerUnavailableError, match="--reasoner"):
        client.judge(clip_mp4)
    with pytest.raises(InferenceServerException, match="--reasoner"):
        call("best_of_n", prompt="a ball", video=clip_mp4)


class Sage:
    """An endpoint that refines every prompt to `refined` and judges clips in turn."""

    def __init__(self, chat_server):
        self.refined, self.answers, self.status = REFINED, [FLAWLESS], 200
        self.endpoint = chat_server(self.answer)
        self.reply = chat_server.Reply

    def answer(self, body):
        if self.status != 200:
            return self.reply(b"out of order", status=self.status)
        if body.get(
            "temperature"
        ):  # the critic's trials differ, the refiner is asked for the likeliest
            return [self.answers[i % len(self.answers)] for i in range(body.get("n", 1))]
        return self.refined


@pytest.fixture(scope="module")
def sage(chat_server):
    return Sage(chat_server)


@pytest.fixture(scope="module")
def refining_server(toy_repository, sage, tmp_path_factory, serve_class):
    """A server whose reasoner is an endpoint, and whose owner lets requests switch guards off."""
    folder = tmp_path_factory.mktemp("refining")
    (folder / "tmp").mkdir()
    serve = serve_class(
        folder / "log.txt", toy_repository, "--reasoner", f"{sage.endpoint.url}#sage",
        "--allow-disable-guardrail", "--guard-pictures", "--language-timeout", "20", "--allow-stage-calls",
        TMPDIR=str(folder / "tmp"), PREDICT2_REASONER_API_KEY="a secret key",
    )  # fmt: skip
    try:
        yield serve.wait_until_ready()
        assert "a secret key" not in serve.text()
        assert "Traceback" not in serve.text()
    finally:
        serve.kill()


@pytest.fixture
def refining(refining_server, sage):
    sage.refined, sage.answers, sage.status = REFINED, [FLAWLESS], 200
    sage.endpoint.requests.clear()
    with Client(refining_server.url) as client:
        yield client


def test_a_short_prompt_is_refined_by_what_there_is_to_see(refining, sage, picture_png):
    request = Video2WorldRequest(prompt="lift it", image=picture_png, seed=3, **QUICK_CLIP)
    result = refining.generate(request)
    assert result.metadata.refiner == "refined"
    assert result.metadata.refined_prompt == REFINED
    assert result.metadata.prompt == "lift it"
    subjects = [verdict["subject"] for verdict in result.metadata.verdicts]
    assert subjects == ["prompt", "refined_prompt", "clip"]
    (asked,) = sage.endpoint.requests
    assert asked.headers["Authorization"] == "Bearer a secret key"
    assert "image_url" in json.dumps(asked.body)
    assert "lift it" in json.dumps(asked.body)
    # It is the clip of the refined prompt, not of the short one.
    plain = Video2WorldRequest(
        prompt=REFINED, image=picture_png, seed=3, disable_prompt_refiner=True, **QUICK_CLIP
    )
    again = refining.generate(plain)
    assert again.metadata.refiner == "off"
    assert again.media == result.media


def test_a_clip_to_go_on_from_is_shown_to_the_refiner(refining, sage, clip_mp4):
    refining.generate(Video2WorldRequest(prompt="go on", video=clip_mp4, **QUICK_CLIP))
    content = sage.endpoint.requests[0].body["messages"][-1]["content"]
    assert sum(part["type"] == "image_url" for part in content) >= 4


def test_what_the_refiner_writes_is_checked(refining, sage):
    sage.refined = "Now the robot assembles a pipe bomb."
    with pytest.raises(BlockedError, match="as the refiner wrote it: weapons"):
        refining.generate(Text2WorldRequest(prompt="a robot", **QUICK_CLIP))


def test_when_the_refiner_fails_the_clip_is_made_from_the_callers_prompt(refining, sage):
    sage.status = 500
    metadata = refining.generate(Text2WorldRequest(prompt="a robot", **QUICK_CLIP)).metadata
    assert metadata.refiner.startswith("failed: ")
    assert metadata.refined_prompt == ""


def test_where_the_owner_allows_it_a_request_goes_unguarded(refining):
    request = Text2ImageRequest(prompt=HARMFUL, disable_guardrail=True, **QUICK)
    metadata = refining.generate(request).metadata
    assert metadata.guardrail == "off"
    assert metadata.verdicts == []


def test_pictures_are_guarded_by_choice(refining):
    metadata = refining.generate(Text2ImageRequest(prompt="a red ball", **QUICK)).metadata
    assert [verdict["subject"] for verdict in metadata.verdicts] == ["prompt", "picture"]


def test_best_of_n_answers_with_the_best_clip_and_the_ranking(refining_server, sage, infer_inputs, picture_png):  # fmt: skip
    sage.status, sage.answers = 200, [FLAWLESS, FLAWED, "no answer at all"]
    values = {"prompt": "lift it", "image": picture_png, "seed": 5, **QUICK_CLIP}
    values |= {"num_generations": 3, "num_critic_trials": 3}
    with tritonclient.grpc.InferenceServerClient(refining_server.url) as triton:
        inputs = infer_inputs(tritonclient.grpc, "best_of_n", values)
        result = triton.infer("best_of_n", inputs, client_timeout=120)
    ranking = critic.from_json(result.as_numpy("ranking").item().decode())
    assert sorted(judged.seed for judged in ranking) == [5, 6, 7]
    assert {judged.score for judged in ranking} == {0.5}
    assert json.loads(result.as_numpy("metadata").item())["seed"] == ranking[0].seed
    assert result.as_numpy("media").tobytes()[4:8] == b"ftyp"


def test_the_command_writes_a_ranked_report(refining_server, refining, sage, tmp_path, picture_png):
    (tmp_path / "first.png").write_bytes(picture_png)
    sage.answers = [FLAWED, FLAWLESS]
    common = ("--save_path", "best", "--num_critic_trials", 4)
    done = predict2(
        refining_server.url, tmp_path, "best-of-n", "--input_path", "first.png", "--prompt", "lift it",
        "--num_generations", 2, "--num_steps", 1, "--num_frames", 5, "--width", 48, "--height", 32, *common,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "best"
    names = {path.name for path in folder.iterdir()}
    assert {"first_seed0.mp4", "first_seed0_score050.json", "first_seed1_score050.html"} <= names
    assert json.loads((folder / "first_seed0_score050.json").read_text()) == [FLAWED, FLAWLESS] * 2
    assert "first_seed1.mp4" in (folder / "index.html").read_text()
    sage.answers = [FLAWLESS]
    done = predict2(refining_server.url, tmp_path, "best-of-n", "--skip_generation", *common)
    assert done.returncode == 0, done.stderr
    assert (folder / "first_seed0_score100.html").exists()
    assert not (folder / "first_seed0_score050.html").exists()


@pytest.fixture(scope="module")
def thinking_server(toy_repository, tiny_reasoner, tiny_llama_guard, tmp_path_factory, serve_class):
    """Only the language stages, on local models of the true classes with random weights."""
    folder = tmp_path_factory.mktemp("thinking")
    repository = folder / "toy"
    repository.mkdir()
    (folder / "tmp").mkdir()
    for part in toy_repository.iterdir():
        if part.name not in ("text2image", "video2world", "text2world", "generate", "best_of_n"):
            (repository / part.name).symlink_to(part)
    guard = tiny_llama_guard.rename(tiny_llama_guard.with_name("Llama-Guard-3-tiny"))
    serve = serve_class(
        folder / "log.txt", repository, "--reasoner", tiny_reasoner, "--text-guard", guard,
        "--offload-prompt-refiner", "--language-timeout", "300", "--allow-stage-calls", TMPDIR=str(folder / "tmp"),
    )  # fmt: skip
    try:
        yield serve.wait_until_ready()
    finally:
        serve.kill()
        guard.rename(tiny_llama_guard)


@pytest.fixture
def think(thinking_server, infer_inputs):
    """think(model, name=value, ...): a stage's outputs as texts."""
    with tritonclient.grpc.InferenceServerClient(thinking_server.url) as triton:

        def call(model, **values):
            inputs = infer_inputs(tritonclient.grpc, model, values)
            result = triton.infer(model, inputs, client_timeout=320)
            return {
                o.name: [bytes(text).decode() for text in result.as_numpy(o.name)]
                for o in result.get_response().outputs
                if o.datatype == "BYTES"
            }

        yield call


def test_a_guard_model_that_talks_nonsense_refuses_all_that_the_blocklist_let_pass(think):
    (answer,) = think("guardrail_text", text="a red ball")["verdict"]
    verdict = Verdict.from_json(answer)
    assert (verdict.safe, verdict.check, verdict.category) == (False, "llama-guard", UNDECIDED)
    (answer,) = think("guardrail_text", text=HARMFUL)["verdict"]
    assert Verdict.from_json(answer).check == "blocklist"


def test_a_local_reasoner_answers_what_it_is_asked(think, picture):
    question = Question("What is it?", num_responses=2, max_new_tokens=4, temperature=1.0, seed=3)
    asked = {"question": question.to_json(), "frames": picture[None]}
    first = think("reasoner", **asked)["responses"]
    assert len(first) == 2
    assert think("reasoner", **asked)["responses"] == first


def test_a_local_refiner_writes_plain_ascii(think, picture):
    (text,) = think("prompt_refiner", prompt="größer", frames=picture[None])["refined_prompt"]
    assert text
    assert text.isascii()


def test_faces_come_back_pixelated_and_the_rest_as_it_was(call):
    rng = np.random.default_rng(0)
    pictures = [np.full((64, 64, 3), (90, 140, 90), np.float32) for _ in range(4)]
    boxes = [draw_face(rng, picture, 32.0) for picture in pictures]
    frames = np.stack([finished(rng, picture) for picture in pictures])
    answer = call("guardrail_video", frames=frames)
    verdict = Verdict.from_json(answer["verdict"].item().decode())
    assert (verdict.safe, verdict.faces) == (True, 4)
    changed = (answer["frames"] != frames).any(-1)
    for picture, (left, top, right, bottom) in zip(changed, boxes, strict=True):
        near = np.s_[
            max(int(top) - 12, 0) : int(bottom) + 12, max(int(left) - 12, 0) : int(right) + 12
        ]
        assert picture[int(top) : int(bottom), int(left) : int(right)].mean() > 0.5
        assert picture.sum() == picture[near].sum()


def test_unsafe_frames_are_refused_and_come_back_black(call):
    rng = np.random.default_rng(0)
    frames = np.stack([finished(rng, hazard(rng, (64, 64))) for _ in range(3)])
    answer = call("guardrail_video", frames=frames)
    verdict = Verdict.from_json(answer["verdict"].item().decode())
    assert (verdict.safe, verdict.check, verdict.category) == (False, "content", "Violence")
    assert not answer["frames"].any()
