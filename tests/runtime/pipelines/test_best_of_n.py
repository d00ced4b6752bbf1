# SPDX-License-Identifier: Apache-2.0
"""Several clips of one request and their ranking; the stages' work is done by trivial networks."""

import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

from predict2_runtime.bls import REQUEST_ID
from predict2_runtime.pipelines.best_of_n import best_of_n_handler
from predict2_runtime.pipelines.generation import Backend
from predict2_runtime.policy import LanguageModel, Policy
from predict2_runtime.progress import Progress
from predict2_spec import critic
from predict2_spec.errors import (
    InvalidRequestError,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import Verdict
from predict2_spec.presets import TOY
from predict2_spec.results import Metadata

REASONING = Policy(reasoner=LanguageModel("sage"))


class Stages:
    """A critic who likes some seeds more than others, and stages that do next to nothing."""

    def __init__(self, scores):
        self.scores, self.fail = scores, {}
        self.critic_asked, self.prompts = [], []
        self.backend = Backend(TOY, {"video2world_denoiser": "fp32"}, self.call, REASONING)

    def call(self, model, **inputs):
        return getattr(self, model.name)(**inputs)

    def guardrail_text(self, text, subject):
        self.prompts.append(subject)
        return {"verdict": [Verdict(True, subject, "blocklist").to_json()]}

    def guardrail_video(self, frames, subject):
        return {"frames": frames, "verdict": [Verdict(True, subject, "content").to_json()]}

    def prompt_refiner(self, prompt, **seen):
        self.prompts.append("refined")
        return {"refined_prompt": [prompt]}

    def text_encoder(self, prompt):
        return {"prompt_embeds": np.zeros((len(prompt), 32, 64), np.float32)}

    def vae_encoder(self, frames):
        return {"latents": np.zeros((16, 1, 6, 10), np.float32)}

    def video2world_denoiser(self, latents, **rest):
        return {"latents": latents, "x0": latents}

    def vae_decoder(self, latents):
        return {"frames": np.zeros((13, 48, 80, 3), np.uint8)}

    def critic(self, video, num_trials, seed):
        self.critic_asked.append((len(video) > 100, num_trials))
        if seed in self.fail:
            raise self.fail[seed]
        return {"responses": [f"seed {seed}"] * num_trials, "score": np.array([self.scores[seed]])}

    def run(self, check=lambda: None, **fields):
        arrays = {
            "prompt": ["a robot"],
            "image": np.frombuffer(PICTURE, np.uint8),
            "num_steps": [1],
            **{name: [value] for name, value in fields.items()},
        }
        progress = Progress(lambda event: None, check)
        return best_of_n_handler(self.backend)(arrays, progress)


def picture():
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (80, 48)).save(stream, "png")
    return stream.getvalue()


PICTURE = picture()


def test_the_clip_that_the_critic_likes_best_is_the_answer():
    stages = Stages({7: 0.2, 8: 1.0, 9: 0.6})
    outputs = stages.run(seed=7, num_generations=3, num_critic_trials=4)
    best = Metadata.from_json(outputs["metadata"])
    assert (best.seed, best.score) == (8, 1.0)
    ranking = critic.from_json(outputs["ranking"])
    assert [(judged.seed, judged.score) for judged in ranking] == [(8, 1.0), (9, 0.6), (7, 0.2)]
    assert ranking[0].responses == ("seed 8",) * 4
    assert stages.critic_asked == [(True, 4)] * 3


def test_two_clips_and_five_trials_are_made_as_in_the_original():
    stages = Stages({0: 0.0, 1: 0.0})
    stages.run()
    assert stages.critic_asked == [(True, 5)] * 2


def test_a_clip_that_cannot_be_judged_is_last_with_its_reason():
    stages = Stages({0: 0.0, 1: 0.0})
    stages.fail = {0: ServerError("the critic stumbled")}
    ranking = critic.from_json(stages.run()["ranking"])
    assert [(judged.seed, judged.error) for judged in ranking] == [(1, ""), (0, "the critic stumbled")]  # fmt: skip


def test_when_no_clip_came_about_the_reason_is_told():
    stages = Stages({})

    def fail(latents):
        raise ServerError("the decoder stumbled")

    stages.vae_decoder = fail
    with pytest.raises(ServerError, match="the decoder stumbled"):
        stages.run()


def test_when_none_can_be_judged_there_is_a_clip_nevertheless():
    stages = Stages({})
    stages.fail = {seed: ServerError(f"the critic stumbled at {seed}") for seed in (0, 1)}
    outputs = stages.run()
    first = Metadata.from_json(outputs["metadata"])
    assert (first.seed, first.score) == (0, None)
    errors = [judged.error for judged in critic.from_json(outputs["ranking"])]
    assert errors == ["the critic stumbled at 0", "the critic stumbled at 1"]


def test_the_prompt_is_checked_and_refined_once_for_all_clips():
    stages = Stages(dict.fromkeys(range(5), 0.5))
    stages.run(num_generations=5)
    assert stages.prompts == ["prompt", "refined", "refined_prompt"]
    subjects = [
        verdict["subject"] for verdict in Metadata.from_json(stages.run()["metadata"]).verdicts
    ]
    assert subjects == ["prompt", "refined_prompt", "clip"]


def test_clips_are_made_side_by_side():
    stages = Stages({0: 0.0, 1: 0.0})
    together = threading.Barrier(2, timeout=20)
    encode = stages.vae_encoder

    def meet(frames):
        together.wait()  # passes only when both are here
        return encode(frames)

    stages.vae_encoder = meet
    stages.run()


def test_a_cancelled_request_ends():
    stages = Stages({0: 0.0, 1: 0.0})

    def check():
        raise RequestCancelledError("the caller hung up")

    with pytest.raises(RequestCancelledError):
        stages.run(check)


def test_calls_carry_the_requests_id_from_every_clip():
    stages, seen = Stages({0: 0.0, 1: 0.0}), []
    call = stages.backend.call

    def listen(model, **inputs):
        seen.append(REQUEST_ID.get())
        return call(model, **inputs)

    stages.backend = replace(stages.backend, call=listen)
    carried = REQUEST_ID.set("request-0001")
    try:
        stages.run()
    finally:
        REQUEST_ID.reset(carried)
    assert len(seen) > 10
    assert set(seen) == {"request-0001"}


class Large(np.ndarray):
    """An array that one can ask for whether it is still there."""


@pytest.mark.parametrize("error", [ServerError, RequestCancelledError])
def test_clips_that_failed_leave_nothing_in_memory(error):
    stages, kept = Stages({}), []

    def fail(latents):
        frames = np.zeros(1000).view(Large)
        kept.append(weakref.ref(frames))
        raise error("no")

    stages.vae_decoder = fail
    gc.disable()  # nothing may wait for it: clips are large
    try:
        with pytest.raises(error):
            stages.run()
        assert kept
        assert not any(reference() is not None for reference in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_generations": 0},
        {"num_generations": critic.MAX_GENERATIONS + 1},
        {"num_critic_trials": critic.MAX_TRIALS + 1},
        {"seed": 2**32 - 1},
        {"return_frames": True},
    ],
)
def test_numbers_outside_their_limits_are_refused(fields):
    with pytest.raises(InvalidRequestError):
        Stages({}).run(**fields)


def test_a_server_without_a_reasoner_refuses_before_any_work():
    stages = Stages({})
    stages.backend = replace(stages.backend, policy=Policy())
    with pytest.raises(ServerUnavailableError, match="--reasoner"):
        stages.run()
