# SPDX-License-Identifier: Apache-2.0
"""The VAE's kernels as torch operators; importing this registers them.

Beside `torch_ops`, whose rules hold here too. On CUDA a tensor [B, C, ...] lies in memory with its channels last.
"""

import math

import torch
from torch import Tensor
from torch import library as torch_library

from . import reference
from .torch_ops import _NAMESPACE, _dtype, _launch


def _sizes(x: Tensor, gamma: Tensor) -> tuple[int, int, int]:
    """(batch, pixels, channels) of x [B, C, ...].

    Raises:
        ValueError: it has no such axes, or gamma another number of channels.
    """
    if x.ndim < 3 or gamma.numel() != x.shape[1] or gamma.numel() == 0:
        raise ValueError(
            f"gamma {tuple(gamma.shape)} doesn't fit the channels of x [B, C, ...] {tuple(x.shape)}"
        )
    return x.shape[0], math.prod(x.shape[2:]), x.shape[1]


def _stride(name: str, x: Tensor) -> int:
    """Elements from an item of x [B, C, ...] to the next.

    Raises:
        ValueError: an item's channels aren't last in memory, or items overlap.
    """
    items = x.movedim(1, -1)
    size = items[:1].numel()
    if not items[:1].is_contiguous() or (len(items) > 1 and items.stride(0) < size):
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} must have its channels last in memory, not the strides {x.stride()}"
        )
    return int(items.stride(0)) if len(items) > 1 else size


def _alike(x: Tensor, out: Tensor) -> None:
    if out.shape != x.shape or out.dtype != x.dtype:
        raise ValueError(
            f"out {tuple(out.shape)} in {out.dtype} must be like x {tuple(x.shape)} in {x.dtype}"
        )


def _run(x: Tensor, gamma: Tensor, out: Tensor, silu: bool) -> None:
    batch, pixels, channels = _sizes(x, gamma)
    dtype = _dtype(x.movedim(1, -1), gamma)
    pointers = [t.data_ptr() for t in (x, gamma, out)]
    sizes = (batch, pixels, channels, _stride("out", out))
    _launch("predict2_rms_silu", (x, gamma, out), dtype, *pointers, *sizes, silu)


@torch_library.custom_op(f"{_NAMESPACE}::rms_silu", mutates_args=())
def rms_silu(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    """As `reference.rms_silu`, in the layout of x."""
    _sizes(x, gamma)
    return torch.empty_like(x).copy_(reference.rms_silu(x, gamma, silu))


@rms_silu.register_kernel("cuda")
def _(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    out = torch.empty_like(x)
    _run(x, gamma, out, silu)
    return out


@rms_silu.register_fake
def _(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    _sizes(x, gamma)
    return torch.empty_like(x)


@torch_library.custom_op(f"{_NAMESPACE}::rms_silu_into", mutates_args=("out",))
def rms_silu_into(x: Tensor, gamma: Tensor, out: Tensor, silu: bool = True) -> None:
    """`rms_silu` written to `out`: the later frames of a clip whose first a causal convolution kept.

    `out` is like x; on CUDA an item of it has its channels last, and what lies between two items is theirs alone
    who made it.
    """
    _sizes(x, gamma)
    _alike(x, out)
    out.copy_(reference.rms_silu(x, gamma, silu))


@rms_silu_into.register_kernel("cuda")
def _(x: Tensor, gamma: Tensor, out: Tensor, silu: bool = True) -> None:
    _alike(x, out)
    _run(x, gamma, out, silu)


@rms_silu_into.register_fake
def _(x: Tensor, gamma: Tensor, out: Tensor, silu: bool = True) -> None:
    _sizes(x, gamma)
    _alike(x, out)
