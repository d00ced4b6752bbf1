# SPDX-License-Identifier: Apache-2.0
"""The Wan 2.1 causal video VAE, streamed chunk by chunk with its past passed in and out.

Module names are those of the released file, so that its weights load as they are.

A clip is one frame and then groups of four, a latent frame each. Every convolution over time looks
at two earlier frames: zeros before the first frame, later the end of the chunk before. The first
frame is alone in one more way: it is never resampled in time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import LATENT_CHANNELS, VaeSpec
from predict2_spec.video import SPATIAL_STRIDE, TEMPORAL_STRIDE, nearest_multiples

# What encodes or decodes a chunk: (chunk, caches or None) -> (result, caches).
Step = Callable[[Tensor, Sequence[Tensor] | None], tuple[Tensor, list[Tensor]]]

IMAGE_CHANNELS = 3
KERNEL = 3  # of every convolution but the 1x1 ones, in space and in time


class Caches:
    """The past of every causal layer, read and replaced in the order in which the layers run."""

    def __init__(self, past: Iterable[Tensor] | None) -> None:
        """Start from what the chunk before left, or from None at the first frame of a clip."""
        self.first = past is None
        self.kept: list[Tensor] = []  # what this chunk leaves to the next
        self._past = iter(past or ())

    def take(self) -> Tensor:
        """The running layer's past: [B, C, 1 or 2 frames, H, W]."""
        return next(self._past)

    def keep(self, frames: Tensor) -> None:
        """Leave the running layer's past to the next chunk."""
        self.kept.append(frames)


class Causal(nn.Module):
    """A layer called with [B, C, T, H, W] and the caches, because it looks back in time."""


class Chain(nn.Sequential, Causal):
    """Layers one after the other, some causal."""

    def forward(self, x: Tensor, caches: Caches) -> Tensor:  # type: ignore[override]
        """[B, C, T, H, W] through all layers."""
        for layer in self:
            x = layer(x, caches) if isinstance(layer, Causal) else layer(x)
        return x


class CausalConv3d(nn.Conv3d, Causal):
    """A convolution that sees this frame and earlier ones, never later ones."""

    def __init__(self, inputs: int, outputs: int, *, space: int = KERNEL, stride: int = 1) -> None:
        """`space` is the kernel's size in height and width, `stride` the step in time."""
        super().__init__(
            inputs,
            outputs,
            (KERNEL, space, space),
            stride=(stride, 1, 1),
            padding=(0, space // 2, space // 2),
        )
        self.history = KERNEL - stride  # frames that later outputs need again

    def forward(self, x: Tensor, caches: Caches) -> Tensor:  # type: ignore[override]
        """[B, C, T, H, W] -> [B, C', T / stride, H, W]; T is 1 in the first chunk."""
        if caches.first:
            # All before the first frame is zero, so only the kernel's last time slice has a say:
            # a third of the work, and an image is nothing but a first frame.
            caches.keep(F.pad(x, (0, 0, 0, 0, self.history - 1, 0)))
            frame = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, padding=self.padding[1:])
            return frame.unsqueeze(2)
        frames = torch.cat((caches.take(), x), dim=2)
        # A copy, because a view would keep the whole chunk in memory.
        caches.keep(frames[:, :, -self.history :].clone())
        return super().forward(frames)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RmsNorm(nn.Module):
    """y = x / max(|x|, 1e-12) * sqrt(C) * gamma, where |x| is the 2-norm over the C channels."""

    def __init__(self, width: int, *, dims: int) -> None:
        """`dims` counts the axes after the channels: 3 for clips, 2 for single frames."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width, *[1] * dims))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, ...] -> the same shape, in the dtype of x throughout as the original does."""
        scale: float = len(self.gamma) ** 0.5
        norm = _at_least_float32(x).square().sum(dim=1, keepdim=True).sqrt().to(x.dtype)
        y: Tensor = x / norm.clamp_min(1e-12) * scale * self.gamma
        return y


class ResidualBlock(Causal):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1x1 shortcut when the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = Chain(
            RmsNorm(inputs, dims=3),
            nn.SiLU(),
            CausalConv3d(inputs, outputs),
            RmsNorm(outputs, dims=3),
            nn.SiLU(),
            nn.Identity(),  # where training had a dropout; it keeps the next layer's number
            CausalConv3d(outputs, outputs),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, inputs, T, H, W] -> [B, outputs, T, H, W]."""
        y: Tensor = self.shortcut(x) + self.residual(x, caches)
        return y


def _per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer of pictures, [N, C, H, W], to every frame of [B, C, T, H, W]."""
    y = layer(x.transpose(1, 2).flatten(0, 1))
    return y.reshape(x.shape[0], x.shape[2], *y.shape[1:]).transpose(1, 2)


class FrameAttention(nn.Module):
    """x + proj(attention(norm(x))): one head over the pixels of each frame by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RmsNorm(width, dims=2)
        self.to_qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> the same shape."""
        return x + _per_frame(self._attend, x)

    def _attend(self, x: Tensor) -> Tensor:
        # Written out: a head this wide has no fused kernel, and TensorRT refuses the operator then.
        # As in a fused kernel, the scores are float32.
        frames, width, *size = x.shape
        qkv = self.to_qkv(self.norm(x)).reshape(frames, 3, width, -1)  # [N, 3, C, H * W]
        q, k = _at_least_float32(qkv[:, 0]), _at_least_float32(qkv[:, 1])
        weights = ((q * width**-0.5).transpose(1, 2) @ k).softmax(-1).to(x.dtype)
        y: Tensor = self.proj((qkv[:, 2] @ weights.transpose(1, 2)).reshape(frames, width, *size))
        return y


class Downsample(Causal):
    """Half the height and width, and half the frames if `temporal`."""

    def __init__(self, width: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, KERNEL, stride=2)
        )
        self.time_conv = CausalConv3d(width, width, space=1, stride=2) if temporal else None

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, C, T, H, W] -> [B, C, T or T / 2, H / 2, W / 2]."""
        x = _per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        if caches.first:
            caches.keep(x)
            return x
        y: Tensor = self.time_conv(x, caches)
        return y


class Upsample(Causal):
    """Twice the height and width at half the channels, and twice the frames if `temporal`."""

    def __init__(self, width: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(
            # The released network says "nearest-exact", which is the same at a factor of 2.
            nn.Upsample(scale_factor=2.0, mode="nearest"),
            nn.Conv2d(width, width // 2, KERNEL, padding=1),
        )
        self.time_conv = CausalConv3d(width, 2 * width, space=1) if temporal else None

    def forward(self, x: Tensor, caches: Caches) -> Tensor:
        """[B, C, T, H, W] -> [B, C / 2, T or 2 * T, 2 * H, 2 * W]."""
        if self.time_conv is not None:
            if caches.first:
                # The first frame isn't doubled, nor do later ones look back at it.
                caches.keep(x.new_zeros(*x.shape[:2], self.time_conv.history, *x.shape[3:]))
            else:
                batch, width, frames, *size = x.shape
                pairs = self.time_conv(x, caches).reshape(batch, 2, width, frames, *size)
                x = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # even frame, odd frame, ...
        return _per_frame(self.resample, x)


def _middle(width: int) -> Chain:
    return Chain(ResidualBlock(width, width), FrameAttention(width), ResidualBlock(width, width))


def _head(width: int, outputs: int) -> Chain:
    return Chain(RmsNorm(width, dims=3), nn.SiLU(), CausalConv3d(width, outputs))


class Encoder(Chain):
    """Frames [B, 3, F, H, W] -> posterior mean and log-variance [B, 32, t, h, w], but for `conv1`."""

    def __init__(self, spec: VaeSpec) -> None:
        layers: list[nn.Module] = []
        inputs = spec.base_width
        for level, multiplier in enumerate(spec.multipliers):
            width = spec.base_width * multiplier
            for _ in range(spec.num_blocks):
                layers.append(ResidualBlock(inputs, width))
                inputs = width
            if level < len(spec.temporal_down):
                layers.append(Downsample(width, temporal=spec.temporal_down[level]))
        parts: dict[str, nn.Module] = {
            "conv1": CausalConv3d(IMAGE_CHANNELS, spec.base_width),
            "downsamples": Chain(*layers),
            "middle": _middle(inputs),
            "head": _head(inputs, 2 * LATENT_CHANNELS),
        }
        super().__init__(OrderedDict(parts))


class Decoder(Chain):
    """Latents [B, 16, t, h, w] after `conv2` -> frames [B, 3, F, H, W]."""

    def __init__(self, spec: VaeSpec) -> None:
        layers: list[nn.Module] = []
        temporal_up = spec.temporal_down[::-1]
        first = inputs = spec.base_width * spec.multipliers[-1]
        for level, multiplier in enumerate(reversed(spec.multipliers)):
            width = spec.base_width * multiplier
            for _ in range(spec.num_blocks + 1):
                layers.append(ResidualBlock(inputs, width))
                inputs = width
            if level < len(temporal_up):
                layers.append(Upsample(width, temporal=temporal_up[level]))
                inputs = width // 2
        parts: dict[str, nn.Module] = {
            "conv1": CausalConv3d(LATENT_CHANNELS, first),
            "middle": _middle(first),
            "upsamples": Chain(*layers),
            "head": _head(inputs, IMAGE_CHANNELS),
        }
        super().__init__(OrderedDict(parts))


class Vae(nn.Module):
    """The whole VAE. Give it weights with `load_state_dict`, under the released file's names."""

    mean: Tensor
    std: Tensor

    def __init__(self, spec: VaeSpec) -> None:
        super().__init__()
        self.encoder = Encoder(spec)
        self.conv1 = nn.Conv3d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.conv2 = nn.Conv3d(LATENT_CHANNELS, LATENT_CHANNELS, 1)
        self.decoder = Decoder(spec)
        # On the CPU even when the parameters are made without storage: no file brings them later.
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            per_channel = torch.tensor(values, device="cpu").reshape(1, -1, 1, 1, 1)
            self.register_buffer(name, per_channel, persistent=False)

    def encode_chunk(
        self, frames: Tensor, caches: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Encode the next frames of a clip.

        Args:
            frames: [B, 3, F, H, W] in [-1, 1], in the dtype of the weights. F is 1 in the first
                chunk and 4k later; H and W are multiples of 8.
            caches: what the chunk before returned; None for the first.

        Returns:
            The mean of the posterior as normalised latents [B, 16, t, H / 8, W / 8], where t is 1
            in the first chunk and F / 4 later; and the caches for the next chunk.

        Raises:
            InvalidRequestError: a size or the number of caches is another.
        """
        if caches is not None:
            check_multiple("frames", frames.shape[2], TEMPORAL_STRIDE)
        for name, size in zip(("height", "width"), frames.shape[3:], strict=True):
            check_multiple(name, size, SPATIAL_STRIDE)
        posterior, kept = _stream(self.encoder, frames, caches)
        mean = self.conv1(posterior)[:, :LATENT_CHANNELS]
        # The reciprocal is rounded by itself as in the original, which shows in bfloat16.
        return (mean - self.mean) * (1 / self.std), kept

    def decode_chunk(
        self, latents: Tensor, caches: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Decode the next latents of a clip.

        Args:
            latents: normalised [B, 16, t, h, w], in the dtype of the weights. t is 1 in the first
                chunk and free later.
            caches: what the chunk before returned; None for the first.

        Returns:
            Frames [B, 3, F, 8 * h, 8 * w] in about [-1, 1], unclamped, where F is 1 in the first
            chunk and 4 * t later; and the caches for the next chunk.

        Raises:
            InvalidRequestError: a size or the number of caches is another.
        """
        frames, kept = _stream(
            self.decoder, self.conv2(latents / (1 / self.std) + self.mean), caches
        )
        return frames, kept

    def encode(self, frames: Tensor) -> Tensor:
        """Encode a clip [B, 3, 1 + 4k, H, W] in [-1, 1] as normalised latents [B, 16, 1 + k, h, w].

        Four frames at a time, so that memory doesn't grow with the clip.

        Raises:
            InvalidRequestError: frames aren't 1 + 4k, or height or width is no multiple of 8.
        """
        check_multiple("frames", frames.shape[2], TEMPORAL_STRIDE, offset=1)
        return _chunked(self.encode_chunk, frames, TEMPORAL_STRIDE)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents [B, 16, 1 + k, h, w] as frames [B, 3, 1 + 4k, H, W], unclamped.

        One latent frame at a time, so that memory doesn't grow with the clip.
        """
        return _chunked(self.decode_chunk, latents, 1)


def _stream(
    network: Chain, x: Tensor, past: Sequence[Tensor] | None
) -> tuple[Tensor, list[Tensor]]:
    if past is None and x.shape[2] != 1:
        raise InvalidRequestError(
            f"the first chunk has {x.shape[2]} frames and must have 1; give the others with the caches it returns"
        )
    layers = sum(isinstance(layer, CausalConv3d) for layer in network.modules())
    if past is not None and len(past) != layers:
        raise InvalidRequestError(
            f"{len(past)} caches were given and {layers} are needed; give all that the chunk before returned"
        )
    caches = Caches(past)
    y: Tensor = network(x, caches)
    return y, caches.kept


def _chunked(step: Step, clip: Tensor, size: int) -> Tensor:
    """Put a clip through `step`: first one frame, then `size` at a time."""
    y, caches = step(clip[:, :, :1], None)
    done = [y]
    for start in range(1, clip.shape[2], size):
        y, caches = step(clip[:, :, start : start + size], caches)
        done.append(y)
    return torch.cat(done, dim=2)


def check_multiple(name: str, value: int, multiple: int, offset: int = 0) -> None:
    """Refuse a size that isn't `offset + k * multiple`.

    Raises:
        InvalidRequestError: with the two nearest that are.
    """
    if value <= 0 or (value - offset) % multiple:
        near = nearest_multiples(value, multiple, offset)
        raise InvalidRequestError(
            f"{name} {value} must be {f'{offset} + ' if offset else ''}a multiple of {multiple}; "
            f"{near}"
        )
