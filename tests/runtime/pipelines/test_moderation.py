# SPDX-License-Identifier: Apache-2.0
"""What guardrails and refiner do to a request, with stages that answer as the contract says."""

from dataclasses import replace

import numpy as np
import pytest

from predict2_runtime.pipelines.generation import Backend
from predict2_runtime.pipelines.moderation import Refinement, open_moderator, refine
from predict2_runtime.policy import LanguageModel, Policy
from predict2_runtime.progress import Progress
from predict2_spec.errors import (
    BlockedError,
    InvalidRequestError,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import UNDECIDED, Verdict
from predict2_spec.presets import TOY
from predict2_spec.requests import Text2ImageRequest, Text2WorldRequest

FRAMES = np.full((5, 32, 48, 3), 7, np.uint8)
REQUEST = Text2WorldRequest(prompt="a robot waves")
OPEN = replace(REQUEST, disable_guardrail=True)
REASONING = Policy(reasoner=LanguageModel("sage"))


class Stages:
    """guardrail_text refuses texts with "bad" in them, guardrail_video frames of 255."""

    def __init__(self):
        self.asked, self.blocked, self.events, self.fail = [], [], [], {}

    def call(self, model, **inputs):
        self.asked.append((model.name, inputs.get("subject")))
        if model.name in self.fail:
            raise self.fail[model.name]
        return getattr(self, model.name)(**inputs)

    def guardrail_text(self, text, subject):
        bad = "bad" in text
        verdict = Verdict(
            not bad, subject, "blocklist", "vice" if bad else "", "bad" if bad else ""
        )
        return {"verdict": [verdict.to_json()]}

    def guardrail_video(self, frames, subject):
        verdict = Verdict(bool(frames.max() < 255), subject, "content", "Violence", "0-4", faces=3)
        return {"frames": frames + 1, "verdict": [verdict.to_json()]}

    def prompt_refiner(self, prompt, frames):
        assert frames is FRAMES
        return {"refined_prompt": [f"{prompt} in the rain"]}

    def moderator(self, request=REQUEST, policy=REASONING):
        progress = Progress(lambda event: self.events.append(event.stage), lambda: None)
        backend = Backend(TOY, {}, self.call, policy, self.blocked.append)
        return open_moderator(backend, request, progress)


@pytest.fixture
def stages():
    return Stages()


def test_a_harmless_prompt_passes_and_its_verdict_is_kept(stages):
    moderator = stages.moderator()
    moderator.check_text("a robot waves", "prompt")
    assert moderator.verdicts == [Verdict(True, "prompt", "blocklist")]
    assert stages.events == ["check_prompt"]
    assert not stages.blocked


def test_a_bad_prompt_is_refused_with_category_and_entry_and_counted(stages):
    with pytest.raises(BlockedError, match=r"^blocked: .*blocklist.* the prompt: vice \(bad\)") as raised:  # fmt: skip
        stages.moderator().check_text("a bad robot", "prompt")
    assert raised.value.verdict == stages.blocked[0]
    assert raised.value.verdict.category == "vice"


def test_frames_come_back_as_the_guard_made_them(stages):
    checked = stages.moderator().check_frames(FRAMES, "clip")
    assert (checked == 8).all()


def test_a_bad_clip_is_refused(stages):
    with pytest.raises(BlockedError, match=r"the clip that was made: Violence \(0-4\)"):
        stages.moderator().check_frames(FRAMES + 248, "clip")


@pytest.mark.parametrize("error", [ServerError("broken"), ServerUnavailableError("gone")])
def test_a_guard_that_fails_refuses(stages, error):
    stages.fail = {"guardrail_text": error, "guardrail_video": error}
    with pytest.raises(BlockedError, match="couldn't decide about the prompt, so it is refused"):
        stages.moderator().check_text("a robot", "prompt")
    with pytest.raises(BlockedError, match="couldn't decide about the clip"):
        stages.moderator().check_frames(FRAMES, "clip")
    assert [verdict.category for verdict in stages.blocked] == [UNDECIDED, UNDECIDED]


def test_a_guard_whose_answer_makes_no_sense_refuses(stages):
    stages.guardrail_text = lambda text, subject: {"verdict": ["{}"]}
    with pytest.raises(BlockedError, match="couldn't decide"):
        stages.moderator().check_text("a robot", "prompt")


def test_a_cancelled_check_is_cancelled_not_refused(stages):
    stages.fail = {"guardrail_text": RequestCancelledError("gone")}
    with pytest.raises(RequestCancelledError):
        stages.moderator().check_text("a robot", "prompt")
    assert not stages.blocked


@pytest.mark.parametrize("request_", [OPEN, Text2ImageRequest(prompt="x", disable_guardrail=True)])
def test_switching_guards_off_is_refused_unless_the_owner_allows_it(stages, request_):
    with pytest.raises(InvalidRequestError, match="--allow-disable-guardrail"):
        stages.moderator(request_)


def test_where_the_owner_allows_it_no_guard_is_asked(stages):
    moderator = stages.moderator(OPEN, Policy(allow_disable_guardrail=True))
    moderator.check_text("a bad robot", "prompt")
    assert moderator.check_frames(FRAMES, "clip") is FRAMES
    assert not stages.asked


def test_without_a_frame_guard_frames_pass(stages):
    assert (
        stages.moderator(policy=Policy(guard_frames=False)).check_frames(FRAMES, "clip") is FRAMES
    )


def test_a_prompt_is_refined_and_what_came_out_is_checked(stages):
    refinement = refine(stages.moderator(), "a robot", wanted=True, frames=FRAMES)
    assert refinement == Refinement("a robot in the rain", "refined")
    assert stages.asked == [("prompt_refiner", None), ("guardrail_text", "refined_prompt")]
    assert stages.events == ["refine_prompt", "check_refined_prompt"]


def test_a_refined_prompt_can_be_refused(stages):
    with pytest.raises(BlockedError, match="as the refiner wrote it"):
        refine(stages.moderator(), "a bad robot", wanted=True, frames=FRAMES)


@pytest.mark.parametrize(("wanted", "policy"), [(False, REASONING), (True, Policy())])
def test_an_unwanted_or_missing_refiner_leaves_the_prompt_alone(stages, wanted, policy):
    refinement = refine(stages.moderator(policy=policy), "a robot", wanted=wanted, frames=FRAMES)
    assert refinement == Refinement("a robot", "off")
    assert not stages.asked


def test_a_refiner_that_fails_leaves_the_prompt_alone_and_says_why(stages):
    stages.fail = {"prompt_refiner": ServerUnavailableError("no answer after 120 s")}
    refinement = refine(stages.moderator(), "a robot", wanted=True, frames=FRAMES)
    assert refinement == Refinement("a robot", "failed: no answer after 120 s")


def test_where_the_refiner_is_required_its_failure_refuses(stages):
    stages.fail = {"prompt_refiner": ServerError("nonsense")}
    moderator = stages.moderator(policy=replace(REASONING, require_refiner=True))
    with pytest.raises(ServerUnavailableError, match=r"\(nonsense\).*disable_prompt_refiner"):
        refine(moderator, "a robot", wanted=True, frames=FRAMES)
