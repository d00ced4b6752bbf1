# SPDX-License-Identifier: Apache-2.0
"""Training of the toy's two denoisers: a rectified flow from noise to the latents of captioned scenes."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_runtime.schedule import CONDITION_SIGMA, flow_time
from predict2_spec.presets import TOY
from predict2_spec.requests import DEFAULT_NEGATIVE_PROMPT
from predict2_spec.video import TOY_SIZES

from .fit import Stage, fit
from .muon import Muon
from .sampling import encode
from .scene import NUM_FRAMES, caption, draw, random_scene
from .text import embed
from .tokenizer import word_tokenizer

SIZE_CHANCES = {"16:9": 0.4, "1:1": 0.3, "9:16": 0.1, "4:3": 0.1, "3:4": 0.1}
_DROPPED = (
    0.2  # of the prompts become the negative one, so that guidance has something to lead from
)
# Guidance multiplies whatever the prompt changes, errors included. So, once the network knows the
# world, what it makes at the guidance of a default request is trained for as well.
_GUIDED_FROM = 0.55  # of the stage
_GUIDED_WEIGHT = 0.1
_TWO_FRAMES = 0.3  # of the clips give two latent frames, the others one


@dataclass(frozen=True)
class Plan:
    """How a denoiser is trained."""

    frames: int  # of a scene
    batch: int
    lr: float
    start: int  # scenes encoded before the first step
    growth: int  # scenes encoded in every step
    most: int  # scenes kept
    time_mean: float  # of the normal whose logistic is the time
    guidance: float  # of a request by default
    zeros: float  # the share of negative prompts that are empty, which the sampler gives as zeros
    time_std: float = 1.4


TEXT2IMAGE = Plan(
    1, batch=80, lr=2e-3, start=1024, growth=6, most=24_000, time_mean=0.3, guidance=4.0, zeros=0.5
)
VIDEO2WORLD = Plan(
    NUM_FRAMES,
    batch=24,
    lr=2e-3,
    start=320,
    growth=1,
    most=8_000,
    time_mean=0.7,
    guidance=7.0,
    zeros=0.1,
)


@dataclass
class Pool:
    """Latents and text embeddings of random training scenes, by picture size."""

    vae: Vae
    encoder: TextEncoder
    frames: int
    rng: np.random.Generator
    latents: dict[str, list[Tensor]] = field(default_factory=lambda: {s: [] for s in SIZE_CHANCES})
    embeds: dict[str, list[Tensor]] = field(default_factory=lambda: {s: [] for s in SIZE_CHANCES})

    def __post_init__(self) -> None:
        self.tokenizer = word_tokenizer()
        self.negative = embed(self.encoder, self.tokenizer, [DEFAULT_NEGATIVE_PROMPT])[0]

    def __len__(self) -> int:
        return sum(len(part) for part in self.latents.values())

    def grow(self, count: int, size: str = "") -> None:
        """Add scenes, of any size or of one."""
        size = size or str(self.rng.choice(list(SIZE_CHANCES), p=list(SIZE_CHANCES.values())))
        width, height = TOY_SIZES[size]
        scenes = [random_scene(self.rng, width, height) for _ in range(count)]
        clips = np.stack([draw(scene, width, height, self.frames) for scene in scenes])
        prompts = [caption(scene, self.rng) for scene in scenes]
        self.latents[size] += encode(self.vae, clips).unbind()
        self.embeds[size] += embed(self.encoder, self.tokenizer, prompts).unbind()

    def batch(self, count: int, zeros: float) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [count, 16, T, H, W] of one size, embeddings of their prompts, and negative ones."""
        size = str(self.rng.choice(list(SIZE_CHANCES), p=list(SIZE_CHANCES.values())))
        rows = self.rng.integers(len(self.latents[size]), size=count)
        text = torch.stack([self.embeds[size][row] for row in rows])
        empty = torch.from_numpy(self.rng.random((count, 1, 1)) < zeros)
        negative = torch.where(empty, torch.zeros_like(text), self.negative)
        dropped = torch.from_numpy(self.rng.random((count, 1, 1)) < _DROPPED)
        latents = torch.stack([self.latents[size][row] for row in rows])
        return latents, torch.where(dropped, negative, text), negative


@torch.no_grad()
def initialise(dit: Dit, seed: int = 0) -> None:
    """Closed gates and a zero output, so that training starts from the identity."""
    torch.manual_seed(seed)
    for name, module in dit.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        if name.endswith("output_proj"):
            module.weight *= 0.5
        if name.endswith("t_embedder.1.linear_2"):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if ("adaln" in name and name.endswith(".2")) or name == "final_layer.linear":
            nn.init.zeros_(module.weight)


def train_denoiser(stage: Stage, plan: Plan, vae: Vae, encoder: TextEncoder) -> Dit:
    """Train the denoiser of a plan on latents of `vae` and embeddings of `encoder`."""
    spec = TOY.text2image if plan is TEXT2IMAGE else TOY.video2world
    assert spec is not None
    dit = Dit(spec)
    initialise(dit)
    rng = np.random.default_rng()
    pool = Pool(vae, encoder, plan.frames, rng)
    for size, chance in SIZE_CHANCES.items():
        for _ in range(round(plan.start * chance / 8)):
            pool.grow(8, size)

    def loss_of(progress: float) -> Tensor:
        if len(pool) < plan.most:
            pool.grow(plan.growth)
        clean, text, negative = pool.batch(plan.batch, plan.zeros)
        # On CPUs half the bits and attention written out are the fastest.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            if progress < _GUIDED_FROM:
                return flow_loss(dit, clean, text, plan, rng)
            return flow_loss(dit, clean, text, plan, rng, negative)

    plain = ("x_embedder", "final_layer.linear", "t_embedder")
    return fit(stage, dit, Muon(dit, plan.lr, plain), loss_of)


def flow_loss(
    dit: Dit,
    clean: Tensor,
    text: Tensor,
    plan: Plan,
    rng: np.random.Generator,
    negative: Tensor | None = None,
) -> Tensor:
    """Squared error of the velocity on the frames that aren't given; and, with `negative`, of the guided one."""
    count, _, frames = clean.shape[:3]
    time = torch.sigmoid(plan.time_mean + plan.time_std * torch.randn(count))
    noise = torch.randn_like(clean)
    times = time[:, None].repeat(1, frames)
    wide = time.view(-1, 1, 1, 1, 1)
    noisy = (1 - wide) * clean + wide * noise
    mask, weight = None, torch.ones_like(clean[:, :1])
    if dit.spec.condition_mask:
        given = torch.from_numpy(1 + (rng.random(count) < _TWO_FRAMES))[:, None]  # latent frames
        is_given = torch.arange(frames)[None] < given
        times = times.masked_fill(is_given, flow_time(CONDITION_SIGMA))
        mask = is_given.view(count, 1, frames, 1, 1).expand_as(weight).float()
        noisy = torch.where(mask > 0, clean, noisy)
        weight = 1 - mask

    def error(flow: Tensor) -> Tensor:
        return ((flow - (noise - clean)).square() * weight).sum() / (weight.sum() * clean.shape[1])

    flow: Tensor = dit(noisy, times, text, mask)
    if negative is None:
        return error(flow)
    with torch.no_grad():
        other: Tensor = dit(noisy, times, negative, mask)
    return error(flow) + _GUIDED_WEIGHT * error(flow + plan.guidance * (flow - other))
