# SPDX-License-Identifier: Apache-2.0
"""How well the toy's networks do what prompts say that they weren't trained with."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_spec.requests import DEFAULT_NEGATIVE_PROMPT
from predict2_spec.video import TOY_SIZES, VideoShape

from .judge import Agreement, agreement
from .sampling import decode, encode, generate
from .scene import MOTIONS, NUM_FRAMES, Scene, Split, draw, plain_caption, random_scene
from .text import embed
from .tokenizer import word_tokenizer

ATTRIBUTES = ("colour", "shape", "background", "look", "first", "path", "motion", "all")
OF_CLIPS = ("first", "path", "motion")
TEXT2IMAGE_GUIDANCE, CLIP_GUIDANCE = 4.0, 7.0  # what requests have by default
BATCH = 25
_SIZES = ("16:9", "16:9", "1:1", "9:16", "4:3", "3:4")  # two of six in the default size


@dataclass(frozen=True)
class Networks:
    """All that the toy preset's checkpoints hold."""

    vae: Vae
    text_encoder: TextEncoder
    text2image: Dit
    video2world: Dit

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of prompts, [n, N, D]."""
        return embed(self.text_encoder, word_tokenizer(), prompts)


@dataclass
class Result:
    """Judged samples of one task."""

    task: str
    split: Split = "held-out"
    scenes: list[Scene] = field(default_factory=list)
    clips: list[NDArray[np.uint8]] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)  # of the clips, [16, T, H, W] each
    agreements: list[Agreement] = field(default_factory=list)
    given_psnr: list[float] = field(default_factory=list)  # of the given frames, in decibels
    given_ssim: list[float] = field(default_factory=list)

    def add(self, scenes: Sequence[Scene], clips: NDArray[np.uint8], latents: Tensor) -> None:
        """Judge clips [n, F, H, W, 3] that were made for scenes, from latents."""
        self.scenes += scenes
        self.clips += list(clips)
        self.latents += latents.unbind()
        self.agreements += [agreement(*pair) for pair in zip(clips, scenes, strict=True)]

    def rate(self, attribute: str) -> tuple[int, int, float, float]:
        """Agreeing samples, all samples, and the 95 % interval of their ratio."""
        good = sum(getattr(a, attribute) for a in self.agreements)
        return good, len(self.agreements), *wilson(good, len(self.agreements))


def wilson(good: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a ratio."""
    if not count:
        return 0.0, 1.0
    ratio, slack = good / count, z * z / count
    middle = (ratio + slack / 2) / (1 + slack)
    half = z * math.sqrt(ratio * (1 - ratio) / count + slack / (4 * count)) / (1 + slack)
    return max(0.0, middle - half), min(1.0, middle + half)


def prompted_scenes(count: int, seed: int, split: Split = "held-out") -> Iterator[tuple[str, list[Scene]]]:  # fmt: skip
    """Batches of scenes of one size (its name comes first), looks and motions in turn."""
    rng = np.random.default_rng(seed)
    motions = tuple(MOTIONS)
    for index in range(math.ceil(count / BATCH)):
        size = _SIZES[index % len(_SIZES)]
        width, height = TOY_SIZES[size]
        number = min(BATCH, count - index * BATCH)
        yield (
            size,
            [
                random_scene(rng, width, height, split, motions[i % len(motions)])
                for i in range(number)
            ],
        )


def judge_text2image(
    networks: Networks, count: int, seed: int = 0, guidance: float = TEXT2IMAGE_GUIDANCE, split: Split = "held-out"
) -> Result:  # fmt: skip
    """Pictures from captions alone; the unconditional branch sees zeros, as for an empty negative prompt."""
    result = Result("text2image", split)
    for size, scenes in prompted_scenes(count, seed, split):
        seeds = range(len(result.scenes), len(result.scenes) + len(scenes))
        latents = _pictures(networks, scenes, size, seeds, guidance, torch.zeros(1))
        result.add(scenes, decode(networks.vae, latents), latents)
    return result


def judge_video2world(
    networks: Networks,
    count: int,
    seed: int = 0,
    guidance: float = CLIP_GUIDANCE,
    split: Split = "held-out",
    given: int = 1,
) -> Result:
    """Clips that go on from the first `given` frames of rendered scenes."""
    result = Result("video2world", split)
    for size, scenes in prompted_scenes(count, seed, split):
        width, height = TOY_SIZES[size]
        truth = np.stack([draw(scene, width, height, given) for scene in scenes])
        seeds = range(len(result.scenes), len(result.scenes) + len(scenes))
        latents = _clips(networks, scenes, encode(networks.vae, truth), seeds, guidance)
        clips = decode(networks.vae, latents)
        for made, wanted in zip(clips[:, :given], truth, strict=True):
            result.given_psnr.append(decibels(made, wanted))
            result.given_ssim.append(similarity(made, wanted))
        result.add(scenes, clips, latents)
    return result


def judge_text2world(
    networks: Networks,
    count: int,
    seed: int = 0,
    guidance: tuple[float, float] = (TEXT2IMAGE_GUIDANCE, CLIP_GUIDANCE),
    split: Split = "held-out",
) -> Result:
    """Clips from captions alone: a picture first, decoded to bytes, then a clip that goes on from it."""
    result = Result("text2world", split)
    negative = networks.embed([DEFAULT_NEGATIVE_PROMPT])[0]
    for size, scenes in prompted_scenes(count, seed, split):
        seeds = range(len(result.scenes), len(result.scenes) + len(scenes))
        latents = _pictures(networks, scenes, size, seeds, guidance[0], negative)
        pictures = decode(networks.vae, latents)
        latents = _clips(networks, scenes, encode(networks.vae, pictures), seeds, guidance[1])
        result.add(scenes, decode(networks.vae, latents), latents)
    return result


def _pictures(
    networks: Networks,
    scenes: Sequence[Scene],
    size: str,
    seeds: Sequence[int],
    guidance: float,
    negative: Tensor,
) -> Tensor:
    width, height = TOY_SIZES[size]
    prompts = networks.embed([plain_caption(scene) for scene in scenes])
    shape = VideoShape(1, height, width).latent
    embeds = (prompts, negative.expand_as(prompts[0]))
    return generate(networks.text2image, embeds, shape, seeds, guidance)


def _clips(
    networks: Networks,
    scenes: Sequence[Scene],
    condition: Tensor,
    seeds: Sequence[int],
    guidance: float,
) -> Tensor:
    prompts = networks.embed([plain_caption(scene) for scene in scenes])
    negative = networks.embed([DEFAULT_NEGATIVE_PROMPT])[0]
    height, width = (8 * side for side in condition.shape[3:])
    shape = VideoShape(NUM_FRAMES, height, width).latent
    return generate(networks.video2world, (prompts, negative), shape, seeds, guidance, condition)


def decibels(made: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of bytes."""
    error = float(np.square(made.astype(np.float64) - truth).mean())
    return 10 * math.log10(255**2 / max(error, 1e-9))


def similarity(made: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """SSIM (Wang et al. 2004) of clips [F, H, W, 3], over the 8 x 8 pixel squares of a grid."""
    frames, height, width, _ = truth.shape
    x, y = (  # [F, rows, columns, 3, 8, 8]
        clip.astype(np.float64)
        .reshape(frames, height // 8, 8, width // 8, 8, 3)
        .transpose(0, 1, 3, 5, 2, 4)
        for clip in (made, truth)
    )
    mean_x, mean_y = x.mean((-2, -1)), y.mean((-2, -1))
    var_x, var_y = x.var((-2, -1)), y.var((-2, -1))
    both = (x * y).mean((-2, -1)) - mean_x * mean_y
    low, high = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * mean_x * mean_y + low) / (mean_x**2 + mean_y**2 + low)
    return float((light * (2 * both + high) / (var_x + var_y + high)).mean())


def judge_vae(
    vae: Vae, count: int, seed: int = 0, split: Split = "held-out"
) -> tuple[Result, list[float]]:
    """Reconstructions of clips: what the judge says, and each clip's PSNR in decibels."""
    result, ratios = Result("vae", split), []
    for size, scenes in prompted_scenes(count, seed, split):
        truth = np.stack([draw(scene, *TOY_SIZES[size]) for scene in scenes])
        latents = encode(vae, truth)
        made = decode(vae, latents)
        ratios += [decibels(*pair) for pair in zip(made, truth, strict=True)]
        result.add(scenes, made, latents)
    return result, ratios


def table(results: Sequence[Result]) -> str:
    """Agreement of each attribute with its 95 % interval, as a Markdown table."""
    head = ("task", "prompts", "n", *ATTRIBUTES)
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for result in results:
        cells = []
        for attribute in ATTRIBUTES:
            if attribute in OF_CLIPS and len(result.clips[0]) == 1:
                cells.append("")  # a picture has none
                continue
            good, count, low, high = result.rate(attribute)
            cells.append(f"{100 * good / count:.1f} % ({100 * low:.0f} to {100 * high:.0f})")
        row = (result.task, result.split, str(len(result.scenes)), *cells)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)
