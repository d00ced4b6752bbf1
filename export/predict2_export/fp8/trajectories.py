# SPDX-License-Identifier: Apache-2.0
"""Whole generations in torch, by the served sampler: all that a denoiser sees in use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor, nn

from predict2_runtime.sampler import Guidance, guided_x0, normal_noise, update
from predict2_runtime.schedule import SIGMA_MAX, solver_steps
from predict2_spec.presets import Preset
from predict2_spec.requests import MAX_DISTILL_STEPS, Solver, Text2ImageRequest, Text2WorldRequest
from predict2_spec.video import LatentShape, VideoShape

_WORLD = Text2WorldRequest(prompt="-")  # for what requests have by default
_IMAGE = Text2ImageRequest(prompt="-")
_GIVEN = 2  # latent frames that a clip can go on from, beside the one of a picture


@dataclass(frozen=True)
class Texts:
    """Embedded prompts, on the networks' device and in their dtype."""

    prompts: Sequence[Tensor]  # [N, D] each
    negative: Tensor  # [N, D], of the negative prompt that clips have by default


@dataclass(frozen=True)
class Generation:
    """One run of the sampler, but for the network and the frames it goes on from."""

    shape: LatentShape
    guidance: Guidance
    seed: int
    num_steps: int
    solver: Solver = "ab2"


def picture_generations(preset: Preset, texts: Texts, num_steps: int) -> Iterator[Generation]:
    """A picture for each prompt, in all sizes in turn.

    Every other negative prompt is empty, as it is by default; text2world's pictures have one.
    """
    sizes = cycle(preset.image_sizes.values())
    for seed, (prompt, (width, height)) in enumerate(zip(texts.prompts, sizes, strict=False)):
        shape = VideoShape(1, height, width).latent
        if preset.distilled:
            unguided = Guidance(prompt, None, 0.0)
            yield Generation(shape, unguided, seed, min(num_steps, MAX_DISTILL_STEPS), "distilled")
            continue
        negative = texts.negative if seed % 2 else torch.zeros_like(prompt)
        yield Generation(shape, Guidance(prompt, negative, _IMAGE.guidance), seed, num_steps)


def run_pictures(
    generations: Sequence[Generation], network: nn.Module, done: Callable[[], None]
) -> None:
    """Make pictures and forget them."""
    for generation in generations:
        denoise(network, generation)
        done()


def clip_generations(
    preset: Preset, texts: Texts, num_steps: int
) -> Iterator[tuple[Generation, Generation]]:
    """For each prompt the picture that a clip begins with, and the clip; in all sizes in turn."""
    sizes = cycle(preset.video_sizes.values())
    for seed, (prompt, (width, height)) in enumerate(zip(texts.prompts, sizes, strict=False)):
        clip = VideoShape(preset.num_frames, height, width).latent
        picture = LatentShape(1, clip.height, clip.width)
        yield (
            Generation(picture, Guidance(prompt, texts.negative, _WORLD.image_guidance), seed, num_steps),
            Generation(clip, Guidance(prompt, texts.negative, _WORLD.guidance), seed, num_steps),
        )  # fmt: skip


def run_clips(
    generations: Sequence[tuple[Generation, Tensor]], network: nn.Module, done: Callable[[], None]
) -> None:
    """Make two clips of each, and forget them: from a picture [16, 1, H, W], and on from the first one's beginning.

    A clip that was given is more than a picture: it has two latent frames. The beginning of what the network made
    itself is such a clip, and no file has to be found for it.
    """
    for generation, picture in generations:
        clip = denoise(network, generation, picture)
        denoise(network, generation, clip[:, :_GIVEN])
        done()


@torch.no_grad()
def denoise(network: nn.Module, generation: Generation, condition: Tensor | None = None) -> Tensor:
    """Clean latents, FP32 [16, T, H, W].

    Args:
        network: a Dit, in any dtype and on any device.
        generation: what to make.
        condition: clean latents of the first frames, [16, K, H, W]; FP32.
    """
    like = next(network.parameters())

    def velocity(latents: Tensor, time: Tensor, embeds: Tensor, mask: Tensor | None) -> Tensor:
        inputs = [latents, time, embeds, *([] if mask is None else [mask])]
        flow: Tensor = network(*(value.to(like.dtype) for value in inputs))
        return flow.float()

    normals = normal_noise(generation.seed, generation.shape)
    latents = torch.from_numpy(next(normals)).to(like.device) * SIGMA_MAX
    previous = torch.zeros_like(latents)
    for step in solver_steps(generation.num_steps, generation.solver):
        x0 = guided_x0(velocity, latents, step.sigma, generation.guidance, condition)
        latents, previous = update(step, latents, x0, previous), x0
        if step.noise:
            latents = latents + step.noise * torch.from_numpy(next(normals)).to(like.device)
    return latents
