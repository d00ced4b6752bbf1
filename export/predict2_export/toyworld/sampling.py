# SPDX-License-Identifier: Apache-2.0
"""Whole generations for many prompts at once, by the same rule as the served sampler's."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_runtime.sampler import initial_noise, replace_first_frames, update
from predict2_runtime.schedule import CONDITION_SIGMA, flow_time, solver_steps
from predict2_spec.video import LatentShape


@torch.no_grad()
def generate(
    dit: Dit,
    embeds: tuple[Tensor, Tensor],
    shape: LatentShape,
    seeds: Sequence[int],
    guidance: float,
    condition: Tensor | None = None,
    num_steps: int = 35,
) -> Tensor:
    """Clean latents [n, 16, T, H, W].

    Args:
        dit: the denoiser.
        embeds: of the prompts [n, N, D], and of the one negative prompt [N, D].
        shape: of the latents.
        seeds: one for each prompt.
        guidance: in the convention cond + guidance * (cond - uncond).
        condition: clean latents of the first frames, [n, 16, K, H, W].
        num_steps: solver steps; one clean pass follows.
    """
    prompts, negative = embeds
    text = torch.cat((prompts, negative.expand_as(prompts)))
    latents = torch.from_numpy(np.stack([initial_noise(seed, shape) for seed in seeds]))
    previous = torch.zeros_like(latents)
    for step in solver_steps(num_steps):
        x0 = _guided(dit, latents, flow_time(step.sigma), text, guidance, condition)
        latents, previous = update(step, latents, x0, previous), x0
    return latents


def _guided(
    dit: Dit,
    latents: Tensor,
    time: float,
    text: Tensor,
    guidance: float,
    condition: Tensor | None,
) -> Tensor:
    count = len(latents)
    inputs = _replaced((1 - time) * latents, condition)
    times = torch.full((count, latents.shape[2]), time)
    mask = None
    if condition is not None:
        times[:, : condition.shape[2]] = flow_time(CONDITION_SIGMA)
        mask = torch.zeros_like(latents[:, :1])
        mask[:, :, : condition.shape[2]] = 1
        mask = mask.repeat(2, 1, 1, 1, 1)
    flow = dit(inputs.repeat(2, 1, 1, 1, 1), times.repeat(2, 1), text, mask)
    given, other = ((1 - time) * latents - time * part for part in flow.split(count))
    return _replaced(given + guidance * (given - other), condition)


def _replaced(latents: Tensor, condition: Tensor | None) -> Tensor:
    replaced: Tensor = replace_first_frames(latents, condition)
    return replaced


@torch.no_grad()
def encode(vae: Vae, clips: NDArray[np.uint8]) -> Tensor:
    """Latents of clips, UINT8 [n, F, H, W, 3]."""
    pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    return vae.encode(pixels)


@torch.no_grad()
def decode(vae: Vae, latents: Tensor) -> NDArray[np.uint8]:
    """Clips, UINT8 [n, F, H, W, 3], from latents."""
    pixels = (vae.decode(latents) + 1) * 127.5 + 0.5
    return pixels.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()
