# SPDX-License-Identifier: Apache-2.0
"""The kernels that write e4m3 with a scale for each row as torch operators; importing this registers them.

Beside `torch_ops`, whose rules hold here too.
"""

import torch
from torch import Tensor
from torch import library as torch_library

from . import reference
from .torch_ops import _NAMESPACE, _contiguous, _dtype, _frames, _gated_twice, _launch


def _quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes like x [..., D] and scales [..., 1], not yet written."""
    shape = (*x.shape[:-1], 1)
    return torch.empty_like(x, dtype=reference.E4M3), x.new_empty(shape, dtype=torch.float32)


@torch_library.custom_op(f"{_NAMESPACE}::adaln_modulate_e4m3", mutates_args=())
def adaln_modulate_e4m3(x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.adaln_modulate_e4m3`."""
    _frames(x, modulation, 2)
    return reference.adaln_modulate_e4m3(x, modulation)


@adaln_modulate_e4m3.register_kernel("cuda")
def _(x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    dtype, sizes = _dtype(x, modulation), _frames(x, modulation, 2)
    out, scales = _quantized(x)
    pointers = [t.data_ptr() for t in (x, modulation, out, scales)]
    _launch("predict2_adaln_modulate_e4m3", (x, modulation), dtype, *pointers, *sizes)
    return out, scales


@adaln_modulate_e4m3.register_fake
def _(x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    _frames(x, modulation, 2)
    return _quantized(x)


@torch_library.custom_op(f"{_NAMESPACE}::gated_residual_modulate_e4m3", mutates_args=())
def gated_residual_modulate_e4m3(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.gated_residual_modulate_e4m3`."""
    _gated_twice(x, y, modulation, next_modulation)
    return reference.gated_residual_modulate_e4m3(x, y, modulation, next_modulation)


@gated_residual_modulate_e4m3.register_kernel("cuda")
def _(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    tensors = (x, y, modulation, next_modulation)
    dtype, sizes = _dtype(*tensors), _gated_twice(*tensors)
    total, (out, scales) = torch.empty_like(x), _quantized(x)
    pointers = [t.data_ptr() for t in (*tensors, total, out, scales)]
    _launch("predict2_gated_residual_modulate_e4m3", tensors, dtype, *pointers, *sizes)
    return total, out, scales


@gated_residual_modulate_e4m3.register_fake
def _(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _gated_twice(x, y, modulation, next_modulation)
    return torch.empty_like(x), *_quantized(x)


@torch_library.custom_op(f"{_NAMESPACE}::gelu_quantize", mutates_args=())
def gelu_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.gelu_quantize`; on CUDA x is bfloat16."""
    _at_least_a_row(x)
    return reference.gelu_quantize(x)


@gelu_quantize.register_kernel("cuda")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype != torch.bfloat16:
        raise ValueError(f"x must be bfloat16, not {x.dtype}")
    _contiguous(x)
    rows, width = _at_least_a_row(x)
    out, scales = _quantized(x)
    pointers = [t.data_ptr() for t in (x, out, scales)]
    _launch("predict2_gelu_quantize", (x,), *pointers, rows, width)
    return out, scales


@gelu_quantize.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    _at_least_a_row(x)
    return _quantized(x)


def _at_least_a_row(x: Tensor) -> tuple[int, int]:
    """(rows, width) of x [..., D].

    Raises:
        ValueError: it has no axis, or a width of 0, of which there is no largest value.
    """
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must be rows [..., D], not {tuple(x.shape)}")
    return x.numel() // x.shape[-1], x.shape[-1]
