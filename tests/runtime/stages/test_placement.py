# SPDX-License-Identifier: Apache-2.0
"""Stages whose engines compute on torch's tensors, as TensorRT's do, against the same engines on numpy arrays.

The engines are the toy's own modules run by torch; its CPU takes the GPU's place.
"""

import numpy as np
import pytest
import torch

from predict2_export.layouts import located
from predict2_export.recipes import recipes
from predict2_export.toy import TRAINED
from predict2_runtime.engines import InstalledEngine
from predict2_runtime.engines.torch_arrays import placement
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.stages.guardrail_video import GuardrailVideo, largest_shapes
from predict2_runtime.stages.text_encoder import TextEncoder
from predict2_runtime.stages.vae import VaeDecoder, VaeEncoder
from predict2_runtime.text import open_tokenizer
from predict2_spec.manifest import Manifest
from predict2_spec.presets import TOY

torch.set_num_threads(1)

PLACED = placement("cpu")
MANIFEST = Manifest("", "toy", "tensorrt", "", "sm90", "", "", {}, {})
RECIPES = {recipe.network: recipe for recipe in recipes(located(TOY, TRAINED), TRAINED)}
DTYPES = (torch.float32, torch.bfloat16)


class Device:
    """A network's graphs as engines that take and give tensors alone, floats in the network's type."""

    def __init__(self, network, dtype):
        recipe = RECIPES[network]
        graphs = recipe.graphs(recipe.module(recipe.weights()).to(dtype))
        self.dtype = dtype
        self.given = []  # every tensor that an engine gave, in order
        self.taken = []
        self.graphs = {name: self._engine(graph) for name, graph in graphs.items()}

    def _engine(self, graph):
        @torch.no_grad()
        def run(inputs):
            assert set(inputs) == set(graph.input_names)
            assert all(isinstance(value, torch.Tensor) for value in inputs.values())
            self.taken.append(dict(inputs))
            values = [inputs[name] for name in graph.input_names]
            values = [v.to(self.dtype) if v.is_floating_point() else v for v in values]
            outputs = graph.module(*values)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            self.given.append(dict(zip(graph.output_names, outputs, strict=True)))
            return dict(self.given[-1])

        return run

    def on_numpy(self, graph):
        return InstalledEngine(MANIFEST, self.graphs, PLACED).on_numpy(graph)


def step_inputs(task, frames):
    rng = np.random.RandomState(0)
    embeds = (TOY.text_encoder.num_tokens, TOY.dit(task).text_width)

    def normal(*shape):
        return rng.randn(*shape).astype(np.float32)

    inputs = {
        "latents": normal(16, frames, 4, 6),
        "previous_x0": normal(16, frames, 4, 6),
        "step": np.array([7]),
        "num_steps": np.array([35]),
        "guidance": np.array([4.0]),
        "prompt_embeds": normal(*embeds),
        "negative_prompt_embeds": normal(*embeds),
    }
    return inputs if frames == 1 else {**inputs, "condition_latents": normal(16, 2, 4, 6)}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("task", "frames"), [("text2image", 1), ("video2world", 4)])
def test_a_solver_step_on_the_device_is_the_step_on_numpy(task, frames, dtype):
    device = Device(f"{task}_denoiser", dtype)
    inputs = step_inputs(task, frames)
    placed = Denoiser(TOY, task, device.graphs["main"], PLACED)(inputs)
    assert device.given[0]["velocity"].dtype == dtype
    plain = Denoiser(TOY, task, device.on_numpy("main"))(inputs)
    for name in ("latents", "x0"):
        assert isinstance(placed[name], np.ndarray)
        assert placed[name].dtype == np.float32
        # the sampler's arithmetic is float32 and float64 on both, element by element
        assert np.array_equal(placed[name], plain[name])


def test_a_step_of_a_clip_without_conditions_is_given_an_empty_mask_on_the_device():
    device = Device("video2world_denoiser", torch.float32)
    inputs = step_inputs("video2world", 4)
    del inputs["condition_latents"], inputs["negative_prompt_embeds"]
    Denoiser(TOY, "video2world", device.graphs["main"], PLACED)(inputs)
    assert device.taken[0]["condition_mask"].shape == (1, 1, 4, 4, 6)
    assert not device.taken[0]["condition_mask"].any()


def check_caches(device):
    """What a call took as a cache is what the call before gave, the very same memory and type."""
    assert len(device.taken) > 2
    for before, after in zip(device.given, device.taken[1:], strict=False):
        caches = {name: value for name, value in after.items() if name.startswith("cache_")}
        assert caches
        for name, value in caches.items():
            assert value.dtype == device.dtype
            assert value.data_ptr() == before[f"next_{name}"].data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_clip_is_encoded_with_caches_that_stay_on_the_device(dtype):
    device = Device("vae_encoder", dtype)
    frames = np.random.RandomState(0).randint(0, 256, (13, 32, 48, 3)).astype(np.uint8)
    placed = VaeEncoder(TOY, device.graphs["first"], device.graphs["next"], PLACED)
    latents = placed({"frames": frames})["latents"]
    check_caches(device)
    assert latents.dtype == np.float32
    plain = VaeEncoder(TOY, device.on_numpy("first"), device.on_numpy("next"))
    # bf16's values go through float32 on their way, which keeps all of them
    assert np.array_equal(latents, plain({"frames": frames})["latents"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_clip_is_decoded_with_caches_that_stay_on_the_device(dtype):
    device = Device("vae_decoder", dtype)
    latents = np.random.RandomState(0).randn(16, 4, 4, 6).astype(np.float32)
    placed = VaeDecoder(TOY, device.graphs["first"], device.graphs["next"], PLACED)
    frames = placed({"latents": latents})["frames"]
    check_caches(device)
    assert frames.dtype == np.uint8
    assert frames.shape == (13, 32, 48, 3)
    plain = VaeDecoder(TOY, device.on_numpy("first"), device.on_numpy("next"))
    assert np.array_equal(frames, plain({"latents": latents})["frames"])


def test_prompts_are_encoded_on_the_device_and_come_back_as_float32():
    recipe = RECIPES["text_encoder"]
    tokenizer = open_tokenizer(recipe.tokenizer, TOY.text_encoder)
    prompts = {"prompt": ["a red ball", "two blue boxes"]}
    found = {}
    for dtype in DTYPES:
        device = Device("text_encoder", dtype)
        found[dtype] = TextEncoder(tokenizer, device.on_numpy("main"))(prompts)["prompt_embeds"]
        assert found[dtype].dtype == np.float32
    wanted = found[torch.float32]
    assert wanted.any()
    # bf16 keeps 8 bits of every value between the layers
    assert np.abs(found[torch.bfloat16] - wanted).max() < 0.05 * np.abs(wanted).max()


def test_frames_are_judged_on_the_device_as_on_numpy():
    device = Device("guardrail_video", torch.float32)
    graphs = InstalledEngine(MANIFEST, device.graphs, PLACED)
    content, faces = map(graphs.on_numpy, ("content", "faces"))
    stage = GuardrailVideo(TOY.frame_guard, content, faces, largest_shapes(TOY))
    frames = np.full((5, 48, 80, 3), 128, np.uint8)
    answer = stage({"frames": frames})
    assert '"safe": true' in answer["verdict"]
    assert np.array_equal(answer["frames"], frames)
    assert len(device.taken) == 4  # both graphs, each in two batches
