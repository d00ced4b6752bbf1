# SPDX-License-Identifier: Apache-2.0
"""Training of the toy's VAE, in two stages: all of it, then the decoder on latents with some noise."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict2_export.networks.vae import (
    Caches,
    CausalConv3d,
    Downsample,
    ResidualBlock,
    Upsample,
    Vae,
)
from predict2_spec.networks import LATENT_CHANNELS, TOY_VAE

from .fit import Stage, fit
from .muon import Muon
from .scene import CELL, NUM_FRAMES, Frames, draw, random_scene

KL_WEIGHT = 5e-4  # a nat of an average latent element against an error of 1 of an average pixel
LATENT_NOISE = 0.3  # of the decoder's own stage, at most, in deviations of a channel
ACTOR_WEIGHT = 4.0  # how much more errors count where the picture isn't plain background
CROP = 32
# Batch and frames of a step. Short crops around the actor first: all that is hard is in them.
_CROPS = ((24, 1), (8, 5), (4, 9), (3, 13))
_WHOLE = ((12, 1), (4, 5), (2, 9), (2, 13))
_CHANCES = (0.25, 0.3, 0.2, 0.25)
_CROPS_UNTIL = 0.55  # of the stage
_SIZES = ((80, 48), (64, 64), (48, 80), (64, 48), (48, 64))
_SIZE_CHANCES = (0.4, 0.3, 0.1, 0.1, 0.1)


@torch.no_grad()
def initialise(vae: Vae, seed: int = 0) -> None:
    """Weights that let a picture through: no bias, kernels over time that look at the newest frame.

    With torch's own the training stays on a plateau where all is either bluish or orange.
    """
    torch.manual_seed(seed)
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            taps = module.kernel_size[-1] ** 2
            nn.init.normal_(module.weight, std=(module.in_channels * taps) ** -0.5)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        if isinstance(module, CausalConv3d):
            module.weight[:, :, :-1] *= 0.2
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            _weight(module.residual[-1]).mul_(0.5)
        if isinstance(module, Downsample):
            _add_identity(_weight(module.resample[1])[:, :, :2, :2], 1 / 4)
            if module.time_conv is not None:
                _add_identity(_weight(module.time_conv)[:, :, 1:], 1 / 2)
        if isinstance(module, Upsample) and module.time_conv is not None:
            for half in _weight(module.time_conv)[:, :, -1:].chunk(2):
                _add_identity(half, 1.0)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _add_identity(kernel: Tensor, gain: float) -> None:
    """Shrink part of a kernel [C, C, ...] and let every channel through it, times `gain` a tap."""
    same = torch.eye(len(kernel)).view(len(kernel), len(kernel), *[1] * (kernel.ndim - 2))
    kernel.mul_(0.3).add_(gain * same)


def posterior(vae: Vae, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of a whole clip's latents, before normalisation."""
    both = vae.conv1(_whole(vae.encoder, frames))
    return both[:, :LATENT_CHANNELS], both[:, LATENT_CHANNELS:].clamp(-20, 5)


def decoded(vae: Vae, latents: Tensor) -> Tensor:
    """A whole clip from latents before normalisation."""
    return _whole(vae.decoder, vae.conv2(latents))


def _whole(network: nn.Module, x: Tensor) -> Tensor:
    """As the chunked pass, in two chunks: the first frame, and all others."""
    caches = Caches(None)
    first: Tensor = network(x[:, :, :1], caches)
    if x.shape[2] == 1:
        return first
    return torch.cat((first, network(x[:, :, 1:], Caches(caches.kept))), dim=2)


def random_clips(
    rng: np.random.Generator, count: int, frames: int, crop: bool, recoloured: float = 0.0
) -> Tensor:
    """Parts of random scenes' clips, [count, 3, frames, H, W] in -1..1, all of one size.

    Args:
        rng: the only source of chance.
        count: clips.
        frames: of a clip.
        crop: cut squares around the actor out of them.
        recoloured: the share of clips in any colours.
    """
    width, height = _SIZES[rng.choice(len(_SIZES), p=_SIZE_CHANCES)]
    parts = []
    for _ in range(count):
        scene = random_scene(rng, width, height, places=(CELL,))
        start = int(rng.integers(NUM_FRAMES - frames + 1))
        scene = replace(scene, x=scene.centre(start)[0], y=scene.centre(start)[1])
        palette = None
        if rng.random() < recoloured:
            words = (scene.colour, scene.background)
            palette = {word: tuple(rng.uniform(0, 255, 3)) for word in words}
        clip = draw(scene, width, height, frames, palette)
        parts.append(_around(rng, clip, scene.centre(frames // 2)) if crop else clip)
    pixels = torch.from_numpy(np.stack(parts)).permute(0, 4, 1, 2, 3)
    return pixels.float() / 127.5 - 1


def _around(rng: np.random.Generator, clip: Frames, centre: tuple[float, float]) -> Frames:
    """A square of the clip that holds its actor, more or less in the middle."""
    corners = [at - CROP / 2 + rng.uniform(-10, 10) for at in centre]
    height, width = clip.shape[1:3]
    left, top = (
        int(np.clip(c, 0, s - CROP)) for c, s in zip(corners, (width, height), strict=True)
    )
    return clip[:, top : top + CROP, left : left + CROP]


def _error(made: Tensor, frames: Tensor) -> Tensor:
    """L1 and squared error, more where the picture isn't plain background."""
    background = frames.flatten(3).median(-1).values[..., None, None]
    weight = 1 + ACTOR_WEIGHT * ((frames - background).abs().amax(1, keepdim=True) > 0.1).float()
    weight = F.max_pool3d(weight, (1, 5, 5), 1, (0, 2, 2))
    gap = made - frames
    return ((gap.abs() + gap.square()) * weight).mean() / weight.mean()


def train_vae(stage: Stage) -> Vae:
    """Train encoder and decoder together."""
    vae = Vae(TOY_VAE)
    initialise(vae)
    rng = np.random.default_rng()

    def loss_of(progress: float) -> Tensor:
        crop = progress < _CROPS_UNTIL
        count, frames = (_CROPS if crop else _WHOLE)[rng.choice(4, p=_CHANCES)]
        clips = random_clips(rng, count, frames, crop, recoloured=0.5 * crop)
        mean, log_variance = posterior(vae, clips)
        latents = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return _error(decoded(vae, latents), clips) + KL_WEIGHT * divergence

    return fit(stage, vae, Muon(vae, lr=3e-3), loss_of)


def latent_statistics(vae: Vae, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every latent channel over clips, [1, 16, 1, 1, 1]."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        parts = [posterior(vae, random_clips(rng, 8, NUM_FRAMES, False))[0] for _ in range(40)]
    rows = torch.cat([part.transpose(0, 1).flatten(1) for part in parts], dim=1)
    return (value.view(1, -1, 1, 1, 1) for value in (rows.mean(1), rows.std(1)))  # type: ignore[return-value]


@torch.no_grad()
def fold_normalisation(vae: Vae) -> None:
    """Change the weights so that latents have mean 0 and deviation 1 by themselves."""
    mean, std = (value.flatten() for value in latent_statistics(vae))
    channels = slice(LATENT_CHANNELS)
    vae.conv1.weight[channels] /= std.view(-1, 1, 1, 1, 1)
    vae.conv1.bias[channels] = (vae.conv1.bias[channels] - mean) / std  # type: ignore[index]
    assert vae.conv2.bias is not None
    vae.conv2.bias += vae.conv2.weight[:, :, 0, 0, 0] @ mean
    vae.conv2.weight *= std.view(1, -1, 1, 1, 1)


def train_decoder(stage: Stage, vae: Vae) -> Vae:
    """Train the decoder alone, with noise on the latents of a folded VAE."""
    vae.requires_grad_(True)
    vae.encoder.requires_grad_(False)
    vae.conv1.requires_grad_(False)
    rng = np.random.default_rng()

    def loss_of(progress: float) -> Tensor:
        crop = progress < _CROPS_UNTIL
        count, frames = (_CROPS if crop else _WHOLE)[rng.choice(4, p=_CHANCES)]
        clips = random_clips(rng, count, frames, crop)
        with torch.no_grad():
            latents, _ = posterior(vae, clips)
        # Denoisers leave errors, so the decoder learns to draw what was meant.
        level = LATENT_NOISE * torch.rand(count, 1, 1, 1, 1)
        return _error(decoded(vae, latents + level * torch.randn_like(latents)), clips)

    return fit(stage, vae, Muon(vae, lr=1.5e-3), loss_of)
