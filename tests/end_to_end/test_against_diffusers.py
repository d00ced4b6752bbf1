# SPDX-License-Identifier: Apache-2.0
"""Whole generations against diffusers' pipelines: the same checkpoint, noise and texts.

Diffusers differs from the original in known ways. Whatever makes the two comparable says so where it stands,
and the last tests show that the comparison would notice.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLWan,
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.transformers import transformer_cosmos
from PIL import Image
from safetensors.torch import save_file

from predict2_export.recipes import recipes
from predict2_runtime.pipelines.generation import Backend, Sampling, make_clip, make_picture
from predict2_runtime.progress import Progress
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.stages.vae import VaeDecoder, VaeEncoder
from predict2_runtime.tensors import from_tensors, to_tensors
from predict2_spec import networks as nets
from predict2_spec.presets import TOY
from predict2_spec.requests import Video2WorldRequest
from predict2_spec.video import VideoShape

# Largest difference of latents, whose spread is 2 to 3. Measured: at most 2e-5 over seeds, threads and
# convolution libraries. Diffusers forms levels and updates in float32, we in float64; the networks sum in
# another order; and guidance 7 multiplies what they round by up to 15 a step. The lowest bit of one input byte
# shows as 6e-5, conditioning frames without their noise level as 9e-5, diffusers' own epsilon as 2e-4.
TOLERANCE = 5e-5

STEPS = 8
PICTURE = VideoShape(1, 48, 64)
CLIP = VideoShape(13, 48, 64)
PROMPT, NEGATIVE = "a robot welds", "blurry, shaky"
TEXTS = {
    text: np.random.RandomState(seed).standard_normal((6, 1024)).astype(np.float32)
    for seed, text in enumerate((PROMPT, NEGATIVE))
}
TEXT2IMAGE = Sampling(PROMPT, "", guidance=4.0, seed=3, num_steps=STEPS, solver="euler")
VIDEO2WORLD = Sampling(PROMPT, NEGATIVE, guidance=7.0, seed=4, num_steps=STEPS, solver="euler")


def small(spec):
    """Two blocks and two heads of a released network: its head width, rotary ratios and text width."""
    # The original rounds its rotary angles to bfloat16 and diffusers doesn't.
    return replace(spec, width=2 * spec.head_dim, num_heads=2, num_blocks=2, rope_dtype="float32")


PRESET = replace(
    TOY,
    text_encoder=replace(nets.TOY_TEXT_ENCODER, width=1024, num_tokens=6),
    vae=nets.VaeSpec(base_width=8),
    text2image=small(nets.DIT_2B_TEXT2IMAGE),
    video2world=small(nets.DIT_2B_VIDEO2WORLD),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small lose more by waiting for a second thread than they gain."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", autouse=True)
def comparable_diffusers():
    """Diffusers without torchvision, which it resizes the padding mask with, and without a sampled posterior."""
    functional = SimpleNamespace(
        resize=lambda mask, size, interpolation: F.interpolate(mask, size=size, mode=interpolation)
    )
    transforms = SimpleNamespace(
        functional=functional, InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
        # The original takes the mean of the VAE's posterior; diffusers draws from it.
        patch.setattr(
            DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
        )
        yield


def randomize(module):
    """Weights that keep activations near 1, in every layer, so that none hides behind a zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1 or name.endswith("gamma"):
            bias = name.endswith("bias")
            parameter.data = 0.1 * noise if bias else 1 + 0.3 * noise
        else:
            parameter.data = noise / math.sqrt(parameter[0].numel())
    return module.eval().requires_grad_(False)


def diffusers_vae(spec):
    module = randomize(
        AutoencoderKLWan(
            base_dim=spec.base_width,
            dim_mult=list(spec.multipliers),
            num_res_blocks=spec.num_blocks,
            temperal_downsample=list(spec.temporal_down),
        )
    )
    for parameter in module.decoder.conv_out.parameters():
        parameter.data *= 0.3  # a small last layer keeps frames within the range that is clamped to
    return module


class NoGuardrail:
    """Diffusers' pipelines insist on a safety checker."""

    def to(self, device):
        pass

    def check_video_safety(self, frames):
        return frames


class Diffusers:
    """Both pipelines over one random checkpoint, which `save` writes as files of the preset."""

    def __init__(self, diffusers_dit):
        self.diffusers_dit = diffusers_dit
        self.vae = diffusers_vae(PRESET.vae)
        self.text2image = self._pipeline(Cosmos2TextToImagePipeline, PRESET.text2image)
        self.video2world = self._pipeline(Cosmos2VideoToWorldPipeline, PRESET.video2world)

    def _pipeline(self, kind, spec):
        pipeline = kind(
            text_encoder=None,
            tokenizer=None,
            transformer=randomize(self.diffusers_dit(spec)),
            vae=self.vae,
            scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
            safety_checker=NoGuardrail(),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self, folder):
        for path, module in (
            (PRESET.vae_path, self.vae),
            (PRESET.text2image_path, self.text2image.transformer),
            (PRESET.video2world_path, self.video2world.transformer),
        ):
            file = folder / path
            file.parent.mkdir(exist_ok=True)
            save_file(module.state_dict(), file)


def engine(graph):
    """What would be lowered, run by torch as it is: an engine by the names of its ONNX graph."""

    def run(inputs):
        outputs = graph.module(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return {n: x.numpy() for n, x in zip(graph.output_names, outputs, strict=True)}

    return run


def open_stages(checkpoints):
    graphs = {
        recipe.network: {
            name: engine(g) for name, g in recipe.graphs(recipe.module(recipe.weights())).items()
        }
        for recipe in recipes(PRESET, checkpoints)
        if recipe.network not in ("text_encoder", "guardrail_video")
    }
    return {
        "text_encoder": lambda inputs: {
            "prompt_embeds": np.stack([TEXTS[text] for text in inputs["prompt"]])
        },
        "vae_encoder": VaeEncoder(PRESET, *graphs["vae_encoder"].values()),
        "vae_decoder": VaeDecoder(PRESET, *graphs["vae_decoder"].values()),
        "text2image_denoiser": Denoiser(
            PRESET, "text2image", graphs["text2image_denoiser"]["main"]
        ),
        "video2world_denoiser": Denoiser(
            PRESET, "video2world", graphs["video2world_denoiser"]["main"]
        ),
    }


@pytest.fixture(scope="module")
def diffusers(diffusers_dit):
    return Diffusers(diffusers_dit)


@pytest.fixture(scope="module")
def stages(diffusers, tmp_path_factory):
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    diffusers.save(checkpoints)
    return open_stages(checkpoints)


class WireTensor:
    def __init__(self, name, array):
        self.name, self.as_numpy = (lambda: name), (lambda: array)


def over_the_wire(tensors, arrays):
    """What arrives when these are sent: the contract's names in the contract's dtypes."""
    return from_tensors(tensors, to_tensors(SimpleNamespace(Tensor=WireTensor), tensors, arrays))


def generate(stages, sampling, shape, first=None):
    """Our pipeline: final latents [C, T, H, W] and frames of a picture, or of a clip that follows `first`."""
    received = {}

    def call(model, **inputs):
        received[model.name] = over_the_wire(model.inputs, inputs)
        return over_the_wire(model.outputs, stages[model.name](received[model.name]))

    backend = Backend(PRESET, {}, call)
    progress = Progress(lambda event: None, lambda: None)
    if first is None:
        frames = make_picture(backend, progress, sampling, shape)
    else:
        frames = make_clip(backend, progress, sampling, shape, first)
    return received["vae_decoder"]["latents"], frames


def generate_by_diffusers(pipeline, sampling, shape, **inputs):
    """Diffusers' pipeline on the same noise and texts: final latents [C, T, H, W] and frames."""
    latent = shape.latent
    size = (1, nets.LATENT_CHANNELS, latent.frames, latent.height, latent.width)
    noise = np.random.RandomState(sampling.seed).standard_normal(size).astype(np.float32)
    text = torch.from_numpy(TEXTS[sampling.prompt])[None]
    negative = torch.zeros_like(text)
    if sampling.negative_prompt:
        negative = torch.from_numpy(TEXTS[sampling.negative_prompt])[None]
    states = []

    def keep_state(pipeline, step, time, tensors):
        states.append(tensors["latents"])
        return {}

    (frames,) = pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=negative,
        latents=torch.from_numpy(noise),  # the pipeline scales it to the highest level
        num_inference_steps=sampling.num_steps,
        guidance_scale=sampling.guidance,
        height=shape.height,
        width=shape.width,
        output_type="np",
        return_dict=False,
        callback_on_step_end=keep_state,
        **inputs,
    )
    in_bytes = np.rint(frames * 255).astype(int)  # they were bytes already, for the safety checker
    return states[-1][0].numpy(), in_bytes.reshape(shape.frames, shape.height, shape.width, 3)


def clip_by_diffusers(diffusers, sampling, shape, first, fps=24):
    """At 24 frames a second diffusers leaves the frames' rotary positions as they are, as the original does."""
    pictures = [Image.fromarray(frame) for frame in first]
    given = {"image": pictures[0]} if len(pictures) == 1 else {"video": pictures}
    return generate_by_diffusers(
        diffusers.video2world, sampling, shape, num_frames=shape.frames, fps=fps, **given
    )


def input_frames(count):
    size = (count, CLIP.height, CLIP.width, 3)
    return np.random.RandomState(count).randint(0, 256, size).astype(np.uint8)


def assert_same(ours, reference):
    latents, frames = ours
    expected_latents, truncated = reference
    assert expected_latents.std() > 1  # else the tolerance would say nothing
    np.testing.assert_allclose(latents, expected_latents, rtol=0, atol=TOLERANCE)
    assert truncated.std() > 10
    assert 0 < truncated.min() < truncated.max() < 255  # nothing was clamped
    # Diffusers truncates to bytes, we round: ours is theirs or the next, one as often as the other.
    # 0.02 is four standard errors of that mean over a picture's 9216 bytes.
    above = frames - truncated
    assert np.unique(above).tolist() == [0, 1]
    assert above.mean() == pytest.approx(0.5, abs=0.02)


def distance(ours, reference):
    return np.abs(ours[0] - reference[0]).max()


@pytest.mark.parametrize("negative_prompt", ["", NEGATIVE])
def test_picture_equals_diffusers(stages, diffusers, negative_prompt):
    # Without a negative prompt diffusers is given the zeros that the original takes in its place.
    sampling = replace(TEXT2IMAGE, negative_prompt=negative_prompt)
    ours = generate(stages, sampling, PICTURE)
    assert_same(ours, generate_by_diffusers(diffusers.text2image, sampling, PICTURE))


@pytest.mark.parametrize(("given", "num_frames"), [(1, 5), (1, 13), (5, 13)])
def test_clip_equals_diffusers(stages, diffusers, given, num_frames):
    shape, first = replace(CLIP, frames=num_frames), input_frames(given)
    ours = generate(stages, VIDEO2WORLD, shape, first)
    assert_same(ours, clip_by_diffusers(diffusers, VIDEO2WORLD, shape, first))


def test_clip_without_negative_prompt_equals_diffusers_without_guidance(stages, diffusers):
    first = input_frames(1)
    ours = generate(stages, replace(VIDEO2WORLD, negative_prompt=""), CLIP, first)
    unguided = replace(VIDEO2WORLD, guidance=1.0)  # where diffusers stops asking a second time
    assert_same(ours, clip_by_diffusers(diffusers, unguided, CLIP, first))


def test_the_originals_solver_is_the_default_and_ends_elsewhere(stages, diffusers):
    first = input_frames(1)
    sampling = replace(VIDEO2WORLD, solver=Video2WorldRequest.solver)
    ours = generate(stages, sampling, CLIP, first)
    reference = clip_by_diffusers(diffusers, VIDEO2WORLD, CLIP, first)
    assert distance(ours, reference) > 1000 * TOLERANCE


def test_another_frame_rate_moves_diffusers_frames_in_time(stages, diffusers):
    first = input_frames(1)
    ours = generate(stages, VIDEO2WORLD, CLIP, first)
    reference = clip_by_diffusers(diffusers, VIDEO2WORLD, CLIP, first, fps=16)
    assert distance(ours, reference) > 1000 * TOLERANCE
