# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from predict2_runtime.guardrails.content import CLASSES
from predict2_runtime.policy import LanguageModel, Policy
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.stages.guardrail_text import GuardrailText
from predict2_runtime.stages.guardrail_video import GuardrailVideo, largest_shapes
from predict2_runtime.stages.reasoner import Reasoner
from predict2_runtime.stages.vae import VaeDecoder, VaeEncoder
from predict2_runtime.stages.warming import warming_shapes
from predict2_spec.manifest import Graph, Manifest, Range
from predict2_spec.presets import PRESETS, TOY
from predict2_spec.video import VideoShape

PLAN = Graph("x", "", 0, {}, {}, profile={"latents": Range((1,), (2,), (3,))})
PLAIN = Graph("x", "", 0, {}, {})
SMALLEST = VideoShape(5, 16, 16)


def manifest(graph=PLAIN, cuda_graphs=0):
    return Manifest(
        "vae_decoder", "toy", "torch", "fp32", "cpu", "", "", {}, {"main": graph}, {}, cuda_graphs=cuda_graphs
    )  # fmt: skip


def test_most_engines_are_warmed_at_the_smallest_shape_there_is():
    assert warming_shapes(manifest(), TOY, "video2world") == (SMALLEST,)
    assert warming_shapes(manifest(), TOY, "text2image") == (VideoShape(1, 16, 16),)


def test_a_plan_is_warmed_at_the_shape_that_requests_have_by_default():
    shapes = warming_shapes(manifest(PLAN), PRESETS["2b-720p-16fps"], "video2world")
    assert shapes == (VideoShape(93, 704, 1280),)


def test_a_recorded_engine_is_warmed_at_as_many_shapes_as_it_keeps_the_default_first():
    recorded = manifest(cuda_graphs=3)
    shapes = warming_shapes(recorded, PRESETS["2b-480p-16fps"], "text2image")
    assert shapes == (
        VideoShape(1, 768, 1360),
        VideoShape(1, 1024, 1024),
        VideoShape(1, 880, 1168),
    )
    assert len(warming_shapes(manifest(cuda_graphs=9), TOY, "video2world")) == len(TOY.video_sizes)


def test_of_a_clip_no_more_is_encoded_than_has_both_graphs():
    shapes = warming_shapes(manifest(PLAN), PRESETS["2b-720p-16fps"], "video2world", 5)
    assert shapes == (VideoShape(5, 704, 1280),)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize("made", [manifest(), manifest(PLAN), manifest(cuda_graphs=5)])
def test_every_preset_takes_what_it_is_warmed_with(preset, made):
    for task in preset.tasks:
        shapes = warming_shapes(made, preset, task)
        assert shapes
        for shape in shapes:
            preset.check(task, shape)


@pytest.mark.parametrize("task", ["text2image", "video2world"])
@pytest.mark.parametrize("name", ["toy", "0.6b-distilled", "2b-720p-16fps-sparse"])
def test_the_denoiser_takes_a_step_guided_as_requests_are(name, task):
    preset, seen = PRESETS[name], []
    if task == "video2world" and not preset.video2world:
        pytest.skip("the preset makes no clips")

    def engine(inputs):
        seen.append(inputs)
        return {"velocity": np.zeros_like(inputs["hidden_states"])}

    shape = warming_shapes(manifest(), preset, task)[0]
    shape = replace(shape, frames=min(shape.frames, 5))
    Denoiser(preset, task, engine, warming=(shape,)).warm_up()
    (inputs,) = seen
    latent = shape.latent
    assert inputs["hidden_states"].shape[2:] == (latent.frames, latent.height, latent.width)
    cond, *uncond = inputs["encoder_hidden_states"]
    assert cond.any()
    assert len(uncond) == (0 if preset.distilled else 1)
    if (
        uncond
    ):  # engines take a short way where they see zeros, as pictures send them and clips don't
        assert uncond[0].any() == (task == "video2world")


def test_the_vae_runs_both_of_its_graphs():
    ran = []

    def graph(name):
        def run(inputs):
            ran.append(name)
            count, height, width = next(iter(inputs.values())).shape[2:]
            latents = np.zeros((1, 16, 1, height // 8, width // 8), np.float32)
            frames = np.zeros((1, 3, count, height * 8, width * 8), np.float32)
            return {"latents": latents} if "frames" in inputs else {"frames": frames}

        return run

    for stage in (VaeEncoder, VaeDecoder):
        stage(TOY, graph("first"), graph("next"), warming=(SMALLEST,)).warm_up()
    assert ran == ["first", "next"] * 2


def test_the_frame_guard_runs_both_of_its_checks_and_hides_no_failure():
    ran = []

    def content(inputs):
        ran.append(len(inputs["picture"]))
        return {"logits": np.zeros((len(inputs["picture"]), len(CLASSES)))}

    def faces(inputs):
        raise ZeroDivisionError

    guard = GuardrailVideo(TOY.frame_guard, content, faces, largest_shapes(TOY), (SMALLEST,))
    with pytest.raises(ZeroDivisionError):
        guard.warm_up()
    assert ran == [4]


def test_only_language_models_of_this_process_are_asked():
    asked = []
    here, there = LanguageModel("folder"), LanguageModel("name", url="http://127.0.0.1:1/v1")
    reasoner = Reasoner(lambda question, frames, fps: asked.append(question) or [""])
    guard = GuardrailText(None, lambda text: asked.append(text) or (True, ""))
    reasoner.warm_up(Policy(reasoner=there))
    guard.warm_up(Policy(text_guard=there))
    reasoner.warm_up(Policy())
    assert not asked
    reasoner.warm_up(Policy(reasoner=here))
    guard.warm_up(Policy(text_guard=here))
    assert [getattr(question, "max_new_tokens", None) for question in asked] == [1, None]
