# SPDX-License-Identifier: Apache-2.0
"""The video VAE for inference, chunk by chunk: a list of layers, and the past of those that look back in time.

Tensors lie in memory with their channels last. A norm writes straight behind the frames that the convolution after it
kept, so that nothing is put together again.

Dims in comments: B batch, C channels, T frames of a chunk, H W rows and columns.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import LATENT_CHANNELS, VaeSpec
from predict2_spec.video import SPATIAL_STRIDE

from .recording import Recordings
from .rms_silu import norm_silu_into, rms_norm

Read = Callable[[str], Tensor]  # a weight by the checkpoint's name, on its device and in its dtype
Tensors = dict[str, Tensor]

_HISTORY = 2  # frames that a causal convolution sees before its own
_LAST = torch.channels_last_3d
# Of a frame. The kernels of a larger one take longer than their launches, so a recording gains nothing; and it copies the
# caches twice, 5 KB a pixel each time, which should be a twentieth of a chunk's time (calculated, not measured).
_RECORDED_PIXELS = 1 << 16


class Past:
    """What layers saw last in the chunk before, and what they leave to the next; in the order in which they run."""

    def __init__(self, before: Sequence[Tensor] | None) -> None:
        """Start from what the chunk before left, or from None at the first frame of a clip."""
        self.first = before is None
        self.kept: list[Tensor] = []
        self._before: Iterator[Tensor] = iter(before or ())

    def take(self) -> Tensor:
        """The running layer's: [B, C, 1 or 2 frames, H, W]."""
        return next(self._before)

    def keep(self, frames: Tensor) -> None:
        """Leave frames to the next chunk: a copy, because a view would keep the whole chunk in memory."""
        self.kept.append(frames.clone(memory_format=_LAST))


Layer = Callable[[Tensor, Past], Tensor]  # [B, C, T, H, W] -> the same axes


@dataclass(frozen=True)
class Convolution:
    """Weights of a convolution, [out, in, ...] with channels last, and its bias."""

    weight: Tensor
    bias: Tensor

    @property
    def padding(self) -> tuple[int, ...]:
        """In height and width."""
        return tuple(size // 2 for size in self.weight.shape[-2:])


@dataclass(frozen=True)
class Causal:
    """A convolution that sees this frame and two earlier ones; with a stride of 2 in time, one earlier."""

    conv: Convolution
    stride: int = 1

    def __call__(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T / stride, H, W]."""
        return self.after(x.shape, partial(_copy, x), past, x)

    def after(
        self, shape: Sequence[int], write: Callable[[Tensor], object], past: Past, like: Tensor
    ) -> Tensor:
        """The same of frames [B, C, T, H, W] that `write` writes to where the convolution reads them."""
        history = _HISTORY + 1 - self.stride
        kept = 0 if past.first else history
        batch, channels, frames, *size = shape
        ring = like.new_empty((batch, kept + frames, *size, channels)).movedim(-1, 1)
        write(ring[:, :, kept:])
        if past.first:
            # All before the first frame is zero, so only the kernel's last time slice has a say.
            past.keep(F.pad(ring, (0, 0, 0, 0, history - 1, 0)))
            weight = self.conv.weight[:, :, -1]
            return F.conv2d(ring[:, :, 0], weight, self.conv.bias, padding=self.conv.padding)[:, :, None]  # fmt: skip
        ring[:, :, :kept] = past.take()
        past.keep(ring[:, :, -history:])
        padding = (0, *self.conv.padding)
        return F.conv3d(ring, self.conv.weight, self.conv.bias, (self.stride, 1, 1), padding)


def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source)


@dataclass(frozen=True)
class NormedCausal:
    """A causal convolution of the norm's SiLU."""

    gamma: Tensor  # [C]
    conv: Causal

    def __call__(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        return self.conv.after(x.shape, partial(norm_silu_into, x, self.gamma), past, x)


@dataclass(frozen=True)
class Residual:
    """Two normed convolutions beside a shortcut."""

    first: NormedCausal
    second: NormedCausal
    shortcut: Convolution | None  # where the width changes

    def __call__(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] -> [B, C', T, H, W]."""
        y = self.second(self.first(x, past), past)
        beside = F.conv3d(x, self.shortcut.weight, self.shortcut.bias) if self.shortcut else x
        return y.add_(beside)


@dataclass(frozen=True)
class FrameAttention:
    """One head over the pixels of each frame by itself, beside a shortcut."""

    gamma: Tensor
    qkv: Convolution
    out: Convolution

    def __call__(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] -> the same."""
        frames = _frames(x)
        qkv = F.conv2d(rms_norm(frames, self.gamma), self.qkv.weight, self.qkv.bias)
        q, k, v = qkv.permute(0, 2, 3, 1).flatten(1, 2)[:, None].chunk(3, dim=-1)  # [F, 1, H*W, C]
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(frames.shape)
        return x + _clip(F.conv2d(y, self.out.weight, self.out.bias), len(x))


@dataclass(frozen=True)
class Down:
    """Half the height and width, and half the frames if there is a convolution for them."""

    space: Convolution
    time: Causal | None

    def __call__(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T or T / 2, H / 2, W / 2]."""
        padded = F.pad(_frames(x), (0, 1, 0, 1))
        x = _clip(F.conv2d(padded, self.space.weight, self.space.bias, stride=2), len(x))
        if self.time is None:
            return x
        if past.first:
            past.keep(x)
            return x
        return self.time(x, past)


@dataclass(frozen=True)
class Up:
    """Twice the height and width at half the channels, and twice the frames if there is a convolution for them."""

    space: Convolution
    time: Causal | None

    def __call__(self, x: Tensor, past: Past) -> Tensor:
        """[B, C, T, H, W] -> [B, C / 2, T or 2 * T, 2 * H, 2 * W]."""
        if (
            self.time and past.first
        ):  # the first frame isn't doubled, nor do later ones look back at it
            past.keep(x.new_zeros(*x.shape[:2], _HISTORY, *x.shape[3:]))
        elif self.time:
            batch, width, frames, *size = x.shape
            pairs = self.time(x, past).reshape(batch, 2, width, frames, *size)
            # even frame, odd frame, ...; with a batch of 1 only the channels' halves move
            x = pairs.permute(0, 3, 1, 4, 5, 2).reshape(batch, 2 * frames, *size, width)
            x = x.permute(0, 4, 1, 2, 3)
        y = F.interpolate(_frames(x), scale_factor=2.0, mode="nearest")
        return _clip(F.conv2d(y, self.space.weight, self.space.bias, padding=1), len(x))


def _frames(x: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B*T, C, H, W]; a view where channels are last and B is 1."""
    return x.transpose(1, 2).flatten(0, 1)


def _clip(frames: Tensor, batch: int) -> Tensor:
    """[B*T, C, H, W] -> [B, C, T, H, W]."""
    return torch.unflatten(frames, 0, (batch, -1)).transpose(1, 2)


@dataclass(frozen=True)
class VaeHalf:
    """The encoder or the decoder."""

    layers: tuple[Layer, ...]
    edge: Convolution  # 1x1x1: after the encoder, before the decoder
    mean: Tensor  # of latents, [1, 16, 1, 1, 1]
    std: Tensor
    num_caches: int


def encode(half: VaeHalf, frames: Tensor, past: Past) -> Tensor:
    """Frames [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, 16, T or T / 4, H / 8, W / 8]."""
    x = _through(half, frames, past)
    mean = F.conv3d(x, half.edge.weight, half.edge.bias)[:, :LATENT_CHANNELS]
    # The reciprocal is rounded by itself as in the original, which shows in bfloat16.
    return (mean - half.mean) * (1 / half.std)


def decode(half: VaeHalf, latents: Tensor, past: Past) -> Tensor:
    """Normalised latents [B, 16, t, h, w] -> frames [B, 3, 1 or 4 * t, 8 * h, 8 * w], unclamped."""
    x = latents / (1 / half.std) + half.mean
    return _through(half, F.conv3d(x, half.edge.weight, half.edge.bias), past)


def _through(half: VaeHalf, x: Tensor, past: Past) -> Tensor:
    for layer in half.layers:
        x = layer(x, past)
    return x


class VaeGraph:
    """An Engine of one half: without caches it takes the first chunk, with them a later one.

    Args:
        half: its weights.
        run: `encode` or `decode`.
        names: of what it takes and makes, beside the caches.
        following: whether it takes caches.
        recorded: CUDA graphs to keep, one for a shape each; 0 launches every kernel by itself, as large frames do.
    """

    def __init__(
        self,
        half: VaeHalf,
        run: Callable[[VaeHalf, Tensor, Past], Tensor],
        names: tuple[str, str],
        *,
        following: bool,
        recorded: int = 0,
    ) -> None:
        self._half, self._run = half, run
        self._source, self._result = names
        self._following = following
        self._caches = [f"cache_{index:02}" for index in range(half.num_caches)]
        self._recordings = Recordings(recorded)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes."""
        return (self._source, *self._caches) if self._following else (self._source,)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Tensors:
        """The result and `next_cache_00`, ...; tensors of other types are cast.

        Raises:
            InvalidRequestError: an input is missing or unknown, or the first chunk isn't one frame.
        """
        if inputs.keys() != set(self.inputs):
            raise InvalidRequestError(
                f"the VAE takes {sorted(self.inputs)} here, not {sorted(inputs)}"
            )
        like = self._half.mean
        placed = [inputs[name].to(like.device, like.dtype) for name in self.inputs]
        if not self._following and placed[0].shape[2] != 1:
            raise InvalidRequestError(
                f"the first chunk has {placed[0].shape[2]} frames and must have 1"
            )
        names = (self._result, *(f"next_{name}" for name in self._caches))
        pixels = placed[0][0, 0, 0].numel() * (
            SPATIAL_STRIDE**2 if self._source == "latents" else 1
        )
        if pixels > _RECORDED_PIXELS:
            return dict(zip(names, self._chunk(*placed), strict=True))
        return dict(zip(names, self._recordings(self._chunk, placed), strict=True))

    def _chunk(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        past = Past(caches if self._following else None)
        return (self._run(self._half, x, past), *past.kept)


def encoder(spec: VaeSpec, read: Read) -> VaeHalf:
    """The encoder's weights and layers."""
    layers: list[Layer] = [Causal(_conv("encoder.conv1", read))]
    inputs, number = spec.base_width, 0
    for level, multiplier in enumerate(spec.multipliers):
        width = spec.base_width * multiplier
        for _ in range(spec.num_blocks):
            layers.append(_residual(f"encoder.downsamples.{number}", read, inputs != width))
            inputs, number = width, number + 1
        if level < len(spec.temporal_down):
            name = f"encoder.downsamples.{number}"
            time = Causal(_conv(f"{name}.time_conv", read), 2) if spec.temporal_down[level] else None  # fmt: skip
            layers.append(Down(_conv(f"{name}.resample.1", read), time))
            number += 1
    return _half(spec, "encoder", "conv1", [*layers, *_middle("encoder", read)], read)


def decoder(spec: VaeSpec, read: Read) -> VaeHalf:
    """The decoder's weights and layers."""
    layers: list[Layer] = [Causal(_conv("decoder.conv1", read)), *_middle("decoder", read)]
    inputs, number = spec.base_width * spec.multipliers[-1], 0
    temporal_up = spec.temporal_down[::-1]
    for level, multiplier in enumerate(reversed(spec.multipliers)):
        width = spec.base_width * multiplier
        for _ in range(spec.num_blocks + 1):
            layers.append(_residual(f"decoder.upsamples.{number}", read, inputs != width))
            inputs, number = width, number + 1
        if level < len(temporal_up):
            name = f"decoder.upsamples.{number}"
            time = Causal(_conv(f"{name}.time_conv", read)) if temporal_up[level] else None
            layers.append(Up(_conv(f"{name}.resample.1", read), time))
            inputs, number = width // 2, number + 1
    return _half(spec, "decoder", "conv2", layers, read)


def _half(spec: VaeSpec, name: str, edge: str, layers: Sequence[Layer], read: Read) -> VaeHalf:
    head = _normed(f"{name}.head.0", f"{name}.head.2", read)
    # by way of float32, as the reference has them
    mean, std = (
        torch.tensor(values, dtype=torch.float32).to(head.gamma).view(1, -1, 1, 1, 1)
        for values in (spec.mean, spec.std)
    )
    layers = (*layers, head)
    return VaeHalf(layers, _conv(edge, read), mean, std, sum(map(_num_caches, layers)))


def _num_caches(layer: Layer) -> int:
    if isinstance(layer, Residual):
        return 2
    if isinstance(layer, Down | Up):
        return int(layer.time is not None)
    return int(not isinstance(layer, FrameAttention))


def _middle(half: str, read: Read) -> list[Layer]:
    name = f"{half}.middle"
    attention = FrameAttention(
        read(f"{name}.1.norm.gamma").flatten(),
        _conv(f"{name}.1.to_qkv", read),
        _conv(f"{name}.1.proj", read),
    )
    return [
        _residual(f"{name}.0", read, widens=False),
        attention,
        _residual(f"{name}.2", read, widens=False),
    ]


def _residual(name: str, read: Read, widens: bool) -> Residual:
    return Residual(
        _normed(f"{name}.residual.0", f"{name}.residual.2", read),
        _normed(f"{name}.residual.3", f"{name}.residual.6", read),
        _conv(f"{name}.shortcut", read) if widens else None,
    )


def _normed(norm: str, conv: str, read: Read) -> NormedCausal:
    return NormedCausal(read(f"{norm}.gamma").flatten(), Causal(_conv(conv, read)))


def _conv(name: str, read: Read) -> Convolution:
    weight = read(f"{name}.weight")
    last = _LAST if weight.ndim == 5 else torch.channels_last
    return Convolution(weight.contiguous(memory_format=last), read(f"{name}.bias"))
