# SPDX-License-Identifier: Apache-2.0
"""Parameters, FLOPs and working memory of the networks, by formula from their specs.

A FLOP is a multiplication or an addition of a matrix product or a convolution; what is done to each
element alone isn't counted, as usual. Letters: N tokens, D model width, E channels of a head.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from predict2_spec.networks import LATENT_CHANNELS, Axes, DitSpec, TextEncoderSpec, VaeSpec
from predict2_spec.video import LatentShape

FP32_BYTES, BF16_BYTES, FP8_BYTES = 4, 2, 1
AREA = 9  # taps of a 3x3 kernel
FRAMES = 3  # taps of a causal kernel along time


@dataclass(frozen=True)
class DitFlops:
    """FLOPs of one pass of a denoiser, by kind."""

    linear: int  # of tokens: 14 D^2 a block, from attention's projections and the MLP
    self_attention: int
    cross_attention: int  # with keys and values of the text
    other: int  # embedding, modulation and the last layer

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.self_attention + self.cross_attention + self.other


def dit_parameters(spec: DitSpec) -> int:
    """Parameters of a denoiser."""
    d, rank = spec.width, spec.adaln_rank
    block = block_matrices(spec) + 3 * (d * rank + rank * 3 * d) + 4 * spec.head_dim
    time = d * d + d * 3 * d + d
    last = d * rank + rank * 2 * d + d * spec.patch_outputs
    return spec.num_blocks * block + spec.patch_inputs * d + time + last


def block_matrices(spec: DitSpec) -> int:
    """Parameters of a block's attention and MLP matrices, which are what 8-bit formats shrink."""
    d = spec.width
    return (4 + 2 + 2 * spec.mlp_ratio) * d * d + 2 * spec.text_width * d


def dit_fp8_bytes(spec: DitSpec) -> int:
    """Bytes of the weights with the blocks' matrices in 8 bits and everything else in bf16."""
    small = spec.num_blocks * block_matrices(spec)
    return small * FP8_BYTES + (dit_parameters(spec) - small) * BF16_BYTES


def seen_keys(spec: DitSpec, grid: Axes) -> list[int]:
    """How many keys a query of each block's self-attention sees."""
    dense = math.prod(grid)
    if grid[0] == 1:  # a single frame is dense in every network
        return [dense] * spec.num_blocks
    windows = (kind and kind.on(grid).window for kind in spec.block_neighborhoods)
    return [math.prod(length or 1 for length in window) if window else dense for window in windows]


def dit_flops(spec: DitSpec, grid: Axes, text_tokens: int) -> DitFlops:
    """FLOPs of one pass over one sample with a grid of tokens (T, rows, columns)."""
    d, rank, blocks = spec.width, spec.adaln_rank, spec.num_blocks
    frames, tokens = grid[0], math.prod(grid)
    modulation = 3 * (d * rank + rank * 3 * d) * blocks + 4 * d * d + d * rank + rank * 2 * d
    ends = d * (spec.patch_inputs + spec.patch_outputs)
    text = 2 * text_tokens * 2 * spec.text_width * d  # its keys and values
    return DitFlops(
        linear=2 * tokens * (4 + 2 + 2 * spec.mlp_ratio) * d * d * blocks,
        self_attention=sum(4 * tokens * keys * d for keys in seen_keys(spec, grid)),
        cross_attention=(4 * tokens * text_tokens * d + text) * blocks,
        other=2 * frames * modulation + 2 * tokens * ends,
    )


def dit_activation_bytes(spec: DitSpec, grid: Axes) -> int:
    """Largest set of bf16 activations of one sample that lives at once, nothing fused.

    That is in the MLP: the residual stream (N D) and the hidden layer before and after its GELU
    (4 N D each), beside the rotary tables (N E in fp32). A fused GELU needs 4 N D less.
    """
    live = (1 + 2 * spec.mlp_ratio) * spec.width * BF16_BYTES
    return math.prod(grid) * (live + spec.head_dim * FP32_BYTES)


def text_encoder_parameters(spec: TextEncoderSpec) -> int:
    """Parameters of a T5 encoder."""
    inner = spec.num_heads * spec.head_dim
    layer = 4 * spec.width * inner + 2 * spec.width * spec.ff_width + 2 * spec.width
    ends = spec.vocab_size * spec.width + spec.num_buckets * spec.num_heads + spec.width
    return spec.num_layers * layer + ends


def whole_t5_parameters(spec: TextEncoderSpec) -> int:
    """Parameters of the T5 with its decoder, as it is published: one embedding serves both halves."""
    cross = 4 * spec.width * spec.num_heads * spec.head_dim + spec.width  # and its norm
    embedding = spec.vocab_size * spec.width
    return 2 * text_encoder_parameters(spec) - embedding + spec.num_layers * cross


def text_encoder_flops(spec: TextEncoderSpec) -> int:
    """FLOPs of one prompt, padding included."""
    inner, tokens = spec.num_heads * spec.head_dim, spec.num_tokens
    matrices = 4 * spec.width * inner + 2 * spec.width * spec.ff_width
    return spec.num_layers * (2 * tokens * matrices + 4 * tokens * tokens * inner)


def text_encoder_activation_bytes(spec: TextEncoderSpec) -> int:
    """Largest live set of one prompt: the hidden layer before and after its ReLU, or the scores.

    Scores are fp32 and live with what softmax makes of them.
    """
    hidden = 2 * spec.num_tokens * spec.ff_width * BF16_BYTES
    scores = 2 * spec.num_heads * spec.num_tokens**2 * FP32_BYTES
    return max(hidden, scores)


@dataclass(frozen=True)
class Place:
    """Where in the VAE a layer works."""

    pixels: int  # for one latent pixel
    rate: int  # frames for one latent frame that isn't the first


@dataclass(frozen=True)
class Conv:
    """A convolution of the VAE."""

    inputs: int
    outputs: int
    place: Place  # of its outputs
    area: int = AREA
    frames: int = FRAMES
    norm: bool = False  # an RMS norm comes before, with a gain a channel
    skips_first: bool = False  # not applied to a clip's first frame

    @property
    def parameters(self) -> int:
        """Weights, biases and the norm's gains."""
        taps = self.area * self.frames
        return self.outputs * (self.inputs * taps + 1) + self.norm * self.inputs

    def flops(self, latent: LatentShape) -> int:
        """FLOPs of a clip; before its first frame all is zero, so only one tap in time counts there."""
        first = 0 if self.skips_first else 1
        taps = self.area * (first + self.frames * self.place.rate * (latent.frames - 1))
        pixels = self.place.pixels * latent.height * latent.width
        return 2 * self.inputs * self.outputs * taps * pixels


def _residual(inputs: int, outputs: int, place: Place) -> Iterator[Conv]:
    yield Conv(inputs, outputs, place, norm=True)
    yield Conv(outputs, outputs, place, norm=True)
    if inputs != outputs:
        yield Conv(inputs, outputs, place, area=1, frames=1)


def _middle(width: int, place: Place) -> Iterator[Conv]:
    yield from _residual(width, width, place)
    yield Conv(width, 3 * width, place, area=1, frames=1, norm=True)
    yield Conv(width, width, place, area=1, frames=1)
    yield from _residual(width, width, place)


def encoder_convs(spec: VaeSpec) -> Iterator[Conv]:
    """The VAE's encoder, layer by layer."""
    place = Place(4 ** len(spec.temporal_down), 2 ** sum(spec.temporal_down))
    width = inputs = spec.base_width
    yield Conv(3, width, place)
    for level, multiplier in enumerate(spec.multipliers):
        width = spec.base_width * multiplier
        for _ in range(spec.num_blocks):
            yield from _residual(inputs, width, place)
            inputs = width
        if level < len(spec.temporal_down):
            place = Place(place.pixels // 4, place.rate)
            yield Conv(width, width, place, frames=1)
            if spec.temporal_down[level]:
                place = Place(place.pixels, place.rate // 2)
                yield Conv(width, width, place, area=1, skips_first=True)
    yield from _middle(width, place)
    yield Conv(width, 2 * LATENT_CHANNELS, place, norm=True)
    yield Conv(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, place, area=1, frames=1)


def decoder_convs(spec: VaeSpec) -> Iterator[Conv]:
    """The VAE's decoder, layer by layer."""
    place = Place(1, 1)
    inputs = spec.base_width * spec.multipliers[-1]
    yield Conv(LATENT_CHANNELS, LATENT_CHANNELS, place, area=1, frames=1)
    yield Conv(LATENT_CHANNELS, inputs, place)
    yield from _middle(inputs, place)
    temporal_up = spec.temporal_down[::-1]
    for level, multiplier in enumerate(reversed(spec.multipliers)):
        width = spec.base_width * multiplier
        for _ in range(spec.num_blocks + 1):
            yield from _residual(inputs, width, place)
            inputs = width
        if level < len(temporal_up):
            if temporal_up[level]:
                yield Conv(width, 2 * width, place, area=1, skips_first=True)
                place = Place(place.pixels, 2 * place.rate)
            place = Place(4 * place.pixels, place.rate)
            inputs = width // 2
            yield Conv(width, inputs, place, frames=1)
    yield Conv(inputs, 3, place, norm=True)


def vae_parameters(convs: Iterable[Conv]) -> int:
    """Parameters of the encoder or the decoder."""
    return sum(conv.parameters for conv in convs)


def vae_flops(spec: VaeSpec, convs: Iterable[Conv], latent: LatentShape) -> int:
    """FLOPs of the encoder or the decoder for one clip, streamed; the middle attends within frames."""
    width = spec.base_width * spec.multipliers[-1]
    pixels = latent.height * latent.width
    attention = latent.frames * 4 * pixels * pixels * width
    return sum(conv.flops(latent) for conv in convs) + attention


def vae_activation_bytes(convs: Iterable[Conv], latent: LatentShape) -> int:
    """Largest bf16 live set of one clip, while the frames of one latent frame stream through.

    In a residual block that is its input, kept for the sum, and what the second norm reads, with its
    fp32 copy and squares. Beside them live the last two frames that every convolution over time has
    read, twice: those of the chunk before and those for the next. A picture has nothing before it.
    """
    streams = latent.frames > 1
    copies = 2 if streams else 1
    pixels = latent.height * latent.width * BF16_BYTES
    live, caches = 0, 0
    for conv in convs:
        place = conv.place.pixels * pixels
        frames = conv.place.rate if streams else 1
        live = max(
            live, place * frames * (2 * conv.outputs + 2 * conv.outputs * FP32_BYTES // BF16_BYTES)
        )
        if conv.frames > 1:
            caches += copies * 2 * conv.inputs * place
    return live + caches
