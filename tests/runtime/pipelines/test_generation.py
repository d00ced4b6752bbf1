# SPDX-License-Identifier: Apache-2.0
"""What pictures and clips ask of the stages, step by step, and what their callers are told meanwhile."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from predict2_runtime.pipelines.generation import Backend, Sampling, make_clip, make_picture
from predict2_runtime.progress import Progress
from predict2_runtime.sampler import initial_noise
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.tensors import from_tensors, to_tensors
from predict2_spec.errors import RequestCancelledError
from predict2_spec.presets import TOY
from predict2_spec.video import VideoShape, latent_frames, pixel_frames

PICTURE, CLIP = VideoShape(1, 32, 48), VideoShape(13, 32, 48)
EMBEDS = (TOY.text_encoder.num_tokens, TOY.text_encoder.width)
SAMPLING = Sampling("a robot welds", "blurry", guidance=3.0, seed=5, num_steps=4, solver="ab2")
UNOPPOSED = replace(SAMPLING, negative_prompt="")  # no negative prompt
STEPS = SAMPLING.num_steps + 1  # and the clean pass


@dataclass(frozen=True)
class Call:
    """One call of a stage."""

    stage: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]


class Stages:
    """The real denoisers on a trivial network and stand-ins for the rest, reached through the contract's tensors."""

    def __init__(self, pb_utils):
        self.calls: list[Call] = []
        self.batches: list[int] = []  # of every network pass
        self.events: list[tuple[str, int, int]] = []
        self.cancelled = False
        self.after_pass = lambda: None
        self.pb_utils = pb_utils
        self.run = {
            "text_encoder": self.encode_text,
            "vae_encoder": self.encode,
            "vae_decoder": self.decode,
            "text2image_denoiser": Denoiser(TOY, "text2image", self.network),
            "video2world_denoiser": Denoiser(TOY, "video2world", self.network),
        }
        self.backend = Backend(TOY, {}, self.call)
        self.progress = Progress(
            lambda event: self.events.append((event.stage, event.step, event.of)), self.check
        )

    def check(self):
        if self.cancelled:
            raise RequestCancelledError("the caller hung up")

    def call(self, model, **inputs):
        inputs = self.over_the_wire(model.inputs, inputs)
        outputs = self.over_the_wire(model.outputs, self.run[model.name](inputs))
        self.calls.append(Call(model.name, inputs, outputs))
        return outputs

    def over_the_wire(self, tensors, arrays):
        return from_tensors(tensors, to_tensors(self.pb_utils, tensors, arrays))

    def network(self, inputs):
        latents, text = inputs["hidden_states"], inputs["encoder_hidden_states"]
        self.batches.append(len(latents))
        self.after_pass()
        return {"velocity": 0.1 * latents + text.mean((1, 2)).reshape(-1, 1, 1, 1, 1)}

    def encode_text(self, inputs):
        embeds = [np.full(EMBEDS, len(text)) for text in inputs["prompt"]]
        return {"prompt_embeds": np.stack(embeds)}

    def encode(self, inputs):
        frames = inputs["frames"]
        rows, columns = PICTURE.latent.height, PICTURE.latent.width
        mean = frames.mean() / 255
        return {"latents": np.full((16, latent_frames(len(frames)), rows, columns), mean)}

    def decode(self, inputs):
        count = pixel_frames(inputs["latents"].shape[1])
        return {"frames": np.zeros((count, PICTURE.height, PICTURE.width, 3))}

    def sent(self, stage):
        return [call.inputs for call in self.calls if call.stage == stage]

    def picture(self, sampling=SAMPLING):
        return make_picture(self.backend, self.progress, sampling, PICTURE)

    def clip(self, sampling=SAMPLING, given=1):
        return make_clip(self.backend, self.progress, sampling, CLIP, input_frames(given))


@pytest.fixture
def stages(pb_utils):
    return Stages(pb_utils)


def input_frames(count):
    size = (count, CLIP.height, CLIP.width, 3)
    return np.random.RandomState(0).randint(0, 256, size).astype(np.uint8)


def test_picture_without_negative_prompt_is_opposed_to_zeros(stages):
    stages.picture(UNOPPOSED)
    assert [inputs["prompt"] for inputs in stages.sent("text_encoder")] == [["a robot welds"]]
    for inputs in stages.sent("text2image_denoiser"):
        assert inputs["prompt_embeds"].any()
        assert inputs["negative_prompt_embeds"].shape == inputs["prompt_embeds"].shape
        assert not inputs["negative_prompt_embeds"].any()
    assert stages.batches == [2] * STEPS


def test_clip_without_negative_prompt_takes_one_network_pass_a_step(stages):
    stages.clip(UNOPPOSED)
    assert [inputs["prompt"] for inputs in stages.sent("text_encoder")] == [["a robot welds"]]
    for inputs in stages.sent("video2world_denoiser"):
        assert "negative_prompt_embeds" not in inputs
    assert stages.batches == [1] * STEPS


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_both_prompts_are_encoded_in_one_call_and_sent_with_every_step(stages, kind):
    getattr(stages, kind)()
    assert [i["prompt"] for i in stages.sent("text_encoder")] == [["a robot welds", "blurry"]]
    steps = stages.sent("text2image_denoiser") + stages.sent("video2world_denoiser")
    assert len(steps) == STEPS
    for inputs in steps:
        # the stand-in encodes a text as its length
        assert np.unique(inputs["prompt_embeds"]) == len("a robot welds")
        assert np.unique(inputs["negative_prompt_embeds"]) == len("blurry")
    assert stages.batches == [2] * STEPS


def test_a_distilled_picture_gets_fresh_noise_between_its_unguided_steps(stages):
    preset = replace(TOY, distilled=True)
    stages.run["text2image_denoiser"] = Denoiser(preset, "text2image", stages.network)
    stages.picture(replace(SAMPLING, solver="distilled", num_steps=3))
    assert [i["prompt"] for i in stages.sent("text_encoder")] == [["a robot welds"]]
    assert stages.batches == [1] * 3
    steps = [call for call in stages.calls if call.stage == "text2image_denoiser"]
    # One generator for all noise: the levels 3.6 and 1.5574 follow 80 (the original's table).
    draws = np.random.RandomState(SAMPLING.seed).standard_normal((3, 16, 1, 4, 6))
    np.testing.assert_allclose(steps[0].inputs["latents"], 80 * draws[0], rtol=1e-6)
    for before, after, level, draw in zip(steps, steps[1:], (3.6, 1.5574), draws[1:], strict=False):
        noisy = before.outputs["x0"] + level * draw
        np.testing.assert_allclose(after.inputs["latents"], noisy, rtol=0, atol=1e-5)
    (decoder,) = stages.sent("vae_decoder")
    np.testing.assert_array_equal(decoder["latents"], steps[-1].outputs["x0"])


def test_each_step_goes_on_from_the_one_before(stages):
    stages.clip()
    steps = [call for call in stages.calls if call.stage == "video2world_denoiser"]
    noise = initial_noise(SAMPLING.seed, CLIP.latent)
    np.testing.assert_array_equal(steps[0].inputs["latents"], noise)
    for before, after in pairwise(steps):
        np.testing.assert_array_equal(after.inputs["latents"], before.outputs["latents"])
        np.testing.assert_array_equal(after.inputs["previous_x0"], before.outputs["x0"])
    (decoder,) = stages.sent("vae_decoder")
    np.testing.assert_array_equal(decoder["latents"], steps[-1].outputs["latents"])


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_the_requests_settings_reach_every_step(stages, kind):
    getattr(stages, kind)(replace(SAMPLING, solver="euler", guidance=1.5))
    steps = stages.sent("text2image_denoiser") + stages.sent("video2world_denoiser")
    names = ("step", "num_steps", "solver", "guidance")
    assert [[inputs[name][0] for name in names] for inputs in steps] == [
        [step, 4, "euler", 1.5] for step in range(3)
    ]


@pytest.mark.parametrize("given", [1, 5])
def test_only_the_given_frames_are_encoded_and_hold_every_step(stages, given):
    frames = stages.clip(given=given)
    (encoder,) = [call for call in stages.calls if call.stage == "vae_encoder"]
    np.testing.assert_array_equal(encoder.inputs["frames"], input_frames(given))
    steps = stages.sent("video2world_denoiser")
    assert len(steps) == STEPS
    for inputs in steps:
        np.testing.assert_array_equal(inputs["condition_latents"], encoder.outputs["latents"])
        assert inputs["latents"].shape[1] == CLIP.latent.frames
    assert len(frames) == CLIP.frames


@pytest.mark.parametrize(("solver", "count"), [("ab2", 5), ("euler", 3)])
def test_a_pictures_progress_names_every_stage_and_counts_every_step(stages, solver, count):
    stages.picture(replace(SAMPLING, solver=solver))
    steps = [("denoise_image", step, count) for step in range(1, count + 1)]
    assert stages.events == [("encode_text", 1, 1), *steps, ("decode_image", 1, 1)]


@pytest.mark.parametrize(("solver", "count"), [("ab2", 5), ("euler", 3)])
def test_a_clips_progress_names_every_stage_and_counts_every_step(stages, solver, count):
    stages.clip(replace(SAMPLING, solver=solver))
    steps = [("denoise_video", step, count) for step in range(1, count + 1)]
    before = [("encode_text", 1, 1), ("encode_input", 1, 1)]
    assert stages.events == [*before, *steps, ("decode_video", 1, 1)]


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_a_request_cancelled_during_a_step_ends_with_that_step(stages, kind):
    def hang_up_in_the_second_pass():
        stages.cancelled = len(stages.batches) == 2

    stages.after_pass = hang_up_in_the_second_pass
    with pytest.raises(RequestCancelledError):
        getattr(stages, kind)()
    assert len(stages.batches) == 2
    assert not stages.sent("vae_decoder")


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_a_request_cancelled_before_the_first_step_makes_none(stages, kind):
    stages.cancelled = True
    with pytest.raises(RequestCancelledError):
        getattr(stages, kind)()
    assert [call.stage for call in stages.calls] == ["text_encoder"]
