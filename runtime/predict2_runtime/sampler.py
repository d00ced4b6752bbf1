# SPDX-License-Identifier: Apache-2.0
"""One solver step of the diffusion sampler, as pure functions over numpy arrays or torch tensors alike."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.video import LatentShape

from .schedule import CONDITION_SIGMA, SIGMA_MAX, Step, flow_time

Array = Any  # a numpy array or a torch tensor

# (latents [B, C, T, H, W], time [B, T], embeds [B, N, D], mask [B, 1, T, H, W] or None) -> velocity
Velocity = Callable[[Array, Array, Array, Array | None], Array]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: x0 = cond + scale * (cond - uncond).

    `scale` 7 here is 8 in the convention uncond + scale * (cond - uncond).
    """

    prompt_embeds: Array  # [N, D]
    negative_prompt_embeds: Array | None  # [N, D]; None when it would equal prompt_embeds
    scale: float


def normal_noise(seed: int, shape: LatentShape) -> Iterator[NDArray[np.float32]]:
    """Standard normals without end, FP32 [C, T, H, W]: numpy's legacy generator, the same on every device.

    Drawn in float64 and rounded to float32, as the original draws its first; what a distilled network needs
    after it, the original draws with the GPU's own generator, which no other machine can repeat.
    """
    generator = np.random.RandomState(seed)
    dims = (LATENT_CHANNELS, shape.frames, shape.height, shape.width)
    while True:
        yield generator.standard_normal(dims).astype(np.float32)


def initial_noise(seed: int, shape: LatentShape) -> NDArray[np.float32]:
    """The starting latents, FP32 [C, T, H, W]: the first normals, scaled to the highest noise level."""
    return next(normal_noise(seed, shape)) * np.float32(SIGMA_MAX)


def replace_first_frames(latents: Array, condition: Array | None) -> Array:
    """`latents` [..., C, T, H, W] with their first frames taken from `condition` [C, K, H, W]."""
    if condition is None:
        return latents
    xp = array_namespace(latents)
    count = condition.shape[-3]
    condition = xp.broadcast_to(condition, (*latents.shape[:-3], *condition.shape[-3:]))
    return xp.concat([condition, latents[..., count:, :, :]], axis=-3)


def guided_x0(
    velocity: Velocity,
    latents: Array,
    sigma: float,
    guidance: Guidance,
    condition: Array | None = None,
) -> Array:
    """The guided prediction of the clean latents.

    Args:
        velocity: the network.
        latents: noisy state x0 + sigma * noise, FP32 [C, T, H, W].
        sigma: noise level of the state.
        guidance: text embeddings and scale.
        condition: clean latents of the first frames, [C, K, H, W], or None. These frames go into the network
            clean, with a time of their own, and come out unchanged.

    Returns:
        x0, FP32 [C, T, H, W].
    """
    xp = array_namespace(latents)
    time = flow_time(sigma)
    embeds = [guidance.prompt_embeds]
    if guidance.negative_prompt_embeds is not None:
        embeds.append(guidance.negative_prompt_embeds)
    batch = len(embeds)

    inputs = replace_first_frames((1.0 - time) * latents, condition)
    times = xp.full_like(latents[0, :, 0, 0], time)
    mask = None
    if condition is not None:
        count = condition.shape[1]
        times[:count] = flow_time(CONDITION_SIGMA)
        mask = xp.zeros_like(latents[:1])
        mask[:, :count] = 1.0
    flow = velocity(
        xp.stack([inputs] * batch),
        xp.stack([times] * batch),
        xp.stack(embeds),
        None if mask is None else xp.stack([mask] * batch),
    )
    x0 = replace_first_frames((1.0 - time) * latents - time * flow, condition)
    if batch == 1:
        return x0[0]
    return x0[0] + guidance.scale * (x0[0] - x0[1])


def update(step: Step, latents: Array, x0: Array, previous_x0: Array) -> Array:
    """The solver's update in float64, rounded back to the state's dtype."""
    xp = array_namespace(latents)
    wide = [xp.astype(a, xp.float64) for a in (latents, x0, previous_x0)]
    result = step.keep * wide[0] + step.now * wide[1] + step.before * wide[2]
    return xp.astype(result, latents.dtype)
