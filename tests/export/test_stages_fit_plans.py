# SPDX-License-Identifier: Apache-2.0
"""What each stage sends its engine lies in the profiles of the plans that are built for it, caches included.

The stages run for real, on torch modules with random weights in place of plans.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from predict2_export.recipes import recipes
from predict2_runtime.engines import read_manifest
from predict2_runtime.engines.fit import check_shapes
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.stages.guardrail_video import GuardrailVideo, largest_shapes
from predict2_runtime.stages.text_encoder import TextEncoder
from predict2_runtime.stages.vae import VaeDecoder, VaeEncoder
from predict2_runtime.text import open_tokenizer
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import MAX_PROMPTS
from predict2_spec.presets import TOY

# Of pictures in pixels: the default, the smallest, and the longest sides that the preset accepts.
SIZES = [(48, 80), (16, 16), (16, 256), (256, 16)]
FRAMES = TOY.num_frames


@pytest.fixture(scope="module")
def engines(toy_plans):
    """From a stage's name to its graphs, which refuse what their plans wouldn't take."""

    def engine(graph, planned, where):
        def call(inputs):
            check_shapes(where, {k: v.shape for k, v in inputs.items()}, planned.profile)
            args = [torch.from_numpy(np.ascontiguousarray(inputs[k])) for k in graph.input_names]
            with torch.no_grad():
                outputs = graph.module(*args)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return dict(zip(graph.output_names, (x.numpy() for x in outputs), strict=True))

        return call

    def of(stage):
        (recipe,) = (r for r in recipes(TOY, Path()) if r.network == stage)
        torch.manual_seed(0)
        graphs = recipe.graphs(recipe.make().eval())
        planned = read_manifest(toy_plans.repository / stage / "1").graphs
        return {name: engine(graphs[name], planned[name], f"{stage}/{name}") for name in planned}

    return of


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("task", ["text2image", "video2world"])
def test_denoisers(engines, task, height, width):
    frames = 1 if task == "text2image" else (FRAMES - 1) // 4 + 1
    latents = np.zeros((16, frames, height // 8, width // 8), np.float32)
    embeds = np.zeros((TOY.text_encoder.num_tokens, TOY.dit(task).text_width), np.float32)
    step = Denoiser(TOY, task, engines(f"{task}_denoiser")["main"])
    inputs = {
        "latents": latents,
        "previous_x0": latents,
        "step": np.array([0]),
        "num_steps": np.array([4]),
        "prompt_embeds": embeds,
        "guidance": np.array([7.0]),
    }
    for guided in ({}, {"negative_prompt_embeds": embeds}):
        assert step(inputs | guided)["latents"].shape == latents.shape


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_vae(engines, height, width):
    graphs = engines("vae_encoder")
    frames = np.zeros((FRAMES, height, width, 3), np.uint8)
    latents = VaeEncoder(TOY, graphs["first"], graphs["next"])({"frames": frames})["latents"]
    graphs = engines("vae_decoder")
    decode = VaeDecoder(TOY, graphs["first"], graphs["next"])
    assert decode({"latents": latents})["frames"].shape == frames.shape
    assert decode({"latents": latents[:, :1]})["frames"].shape == (1, height, width, 3)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_frame_guard(engines, height, width):
    graphs = engines("guardrail_video")
    guard = GuardrailVideo(TOY.frame_guard, graphs["content"], graphs["faces"], largest_shapes(TOY))
    for count in (1, FRAMES):
        frames = np.zeros((count, height, width, 3), np.uint8)
        verdict = guard({"frames": frames})["verdict"]
        assert "undecided" not in verdict  # as it would be if a plan refused the frames


def test_text_encoder(engines, toy_plans):
    path = toy_plans.repository / "text_encoder" / "1" / "tokenizer.json"
    tokenizer = open_tokenizer(path, TOY.text_encoder)
    encode = TextEncoder(tokenizer, engines("text_encoder")["main"])
    for count in (1, MAX_PROMPTS):
        assert len(encode({"prompt": ["a red ball"] * count})["prompt_embeds"]) == count


def test_what_lies_outside_a_plan_is_refused(engines):
    encode = engines("text_encoder")["main"]
    ids = np.ones((MAX_PROMPTS + 1, TOY.text_encoder.num_tokens), np.int64)
    with pytest.raises(InvalidRequestError, match=f"input_ids is .{MAX_PROMPTS + 1}, 32"):
        encode({"input_ids": ids, "attention_mask": ids})
