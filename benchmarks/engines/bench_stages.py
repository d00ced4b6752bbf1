# SPDX-License-Identifier: Apache-2.0
"""Each stage around the denoiser by itself, with random weights of the real sizes: in plain torch and in the torch engine.

python -m benchmarks.engines.bench_stages [vae-encoder|vae-decoder|text-encoder]
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.engines.generation import (
    VaeHalves,
    decode,
    encode,
    our_vae,
    plain_vae,
    text_encoder,
)
from benchmarks.engines.random_networks import random_network
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_export.costs import decoder_convs, encoder_convs, text_encoder_flops, vae_flops
from predict2_export.networks.vae import Vae
from predict2_spec.networks import LATENT_CHANNELS, T5_11B, WAN_VAE, TextEncoderSpec, VaeSpec
from predict2_spec.video import CONDITIONAL_FRAMES, TEXT2IMAGE_SIZES, VIDEO_SIZES, VideoShape

COMMAND = "make gpu"
FRAMES = 93


@dataclass(frozen=True)
class Case:
    """A call of a stage."""

    title: str
    flops: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """What is given and made."""

    vae: VaeSpec
    text: TextEncoderSpec
    given: tuple[VideoShape, ...]
    made: tuple[VideoShape, ...]


def _clip(name: str, frames: int) -> VideoShape:
    width, height = VIDEO_SIZES[name]["16:9"]
    return VideoShape(frames, height, width)


REAL = Sizes(
    WAN_VAE,
    T5_11B,
    tuple(_clip(name, frames) for name in ("480", "720") for frames in CONDITIONAL_FRAMES),
    (
        VideoShape(1, *reversed(TEXT2IMAGE_SIZES["16:9"])),
        _clip("480", FRAMES),
        _clip("720", FRAMES),
    ),
)


def _halves(spec: VaeSpec, like: Tensor) -> Iterator[tuple[str, VaeHalves]]:
    # The engine records no chunk of frames this large.
    torch.manual_seed(0)
    vae = random_network(partial(Vae, spec), like)
    yield "torch eager", plain_vae(vae)
    yield "torch engine", our_vae(vae, spec)


def _told(shape: VideoShape) -> str:
    frames = "1 frame" if shape.frames == 1 else f"{shape.frames} frames"
    return f"{frames} of {shape.width}x{shape.height}"


def vae_encoder(sizes: Sizes, like: Tensor) -> Iterator[Case]:
    """The frames that a clip goes on from."""
    for engine, halves in _halves(sizes.vae, like):
        for shape in sizes.given:
            frames = like.new_empty(1, 3, shape.frames, shape.height, shape.width).uniform_(-1, 1)
            flops = vae_flops(sizes.vae, encoder_convs(sizes.vae), shape.latent)
            title = f"vae_encoder, {_told(shape)}, {engine}"
            yield Case(title, flops, partial(encode, halves, frames))


def vae_decoder(sizes: Sizes, like: Tensor) -> Iterator[Case]:
    """A picture, and whole clips."""
    for engine, halves in _halves(sizes.vae, like):
        for shape in sizes.made:
            latent = shape.latent
            dims = (LATENT_CHANNELS, latent.frames, latent.height, latent.width)
            latents = torch.randn(dims, device=like.device)
            flops = vae_flops(sizes.vae, decoder_convs(sizes.vae), latent)
            title = f"vae_decoder, {_told(shape)}, {engine}"
            yield Case(title, flops, partial(decode, halves, latents, like.dtype))


def text(sizes: Sizes, like: Tensor) -> Iterator[Case]:
    """Two prompts: the engine's network, and transformers' own where that is installed."""
    spec = sizes.text
    title, flops = (
        f"text_encoder, 2 prompts of {spec.num_tokens} tokens",
        2 * text_encoder_flops(spec),
    )
    yield Case(f"{title}, torch engine", flops, text_encoder(spec, like))
    yield Case(f"{title}, torch engine, recorded", flops, text_encoder(spec, like, recorded=1))
    try:
        from predict2_export.networks.text_encoder import TextEncoder
    except ModuleNotFoundError as error:
        print(f"{title}, torch eager: left out, {error}", flush=True)
        return
    network = random_network(partial(TextEncoder, spec), like)
    ids = torch.randint(1, spec.vocab_size, (2, spec.num_tokens), device=like.device)
    yield Case(f"{title}, torch eager", flops, partial(network, ids, torch.ones_like(ids)))


STAGES = {"vae-encoder": vae_encoder, "vae-decoder": vae_decoder, "text-encoder": text}


def measure(stage: str, sizes: Sizes, like: Tensor, runs: int = 5) -> None:
    """Time a stage's cases and record them."""
    with torch.inference_mode():
        for case in STAGES[stage](sizes, like):
            result = summary(gpu_seconds(case.run, runs=runs, warmup=1))
            note = f"{case.flops / 1e12:.3g} TFLOP, {case.flops / result['median_s'] / 1e12:.0f} TFLOP/s"
            record(case.title, COMMAND, {"stage": stage, **result, "note": note})


def main() -> None:
    """Measure what the arguments name, or all."""
    like = torch.empty((), device="cuda", dtype=torch.bfloat16)
    for stage in sys.argv[1:] or STAGES:
        measure(stage, REAL, like)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
