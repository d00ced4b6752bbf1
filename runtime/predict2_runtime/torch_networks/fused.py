# SPDX-License-Identifier: Apache-2.0
"""What a kernel computes in one pass: ours on a GPU where they were built, plain torch elsewhere.

Plain torch rounds where the reference module does, after every operation. A kernel computes in float32 inside and
rounds what it returns, the gated product and its sum apart.

Dims in comments: F frames of all rows of a batch, S tokens of a frame, B batch, N tokens, D model width, E channels
of an attention head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .products import Quantized, Rows, quantize
from .rotary import Rotation

EPS = 1e-6  # of every norm in the denoiser


def modulate(x: Tensor, modulation: Tensor, coded: bool = False) -> Rows:
    """LayerNorm without weights, times 1 + scale, plus shift; in 8 bits if `coded`.

    x is [F, S, D], modulation [F, 2D or more].
    """
    kernels = _kernels(x, coded)
    if kernels and coded:
        codes, scales = kernels.adaln_modulate_e4m3(x, modulation)
        return Quantized(codes, scales, x.dtype)
    if kernels:
        fused: Tensor = kernels.adaln_modulate(x, modulation)
        return fused
    width = x.shape[-1]
    shift, scale = modulation[:, None, :width], modulation[:, None, width : 2 * width]
    u = F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
    return quantize(u) if coded else u


def gated_modulate(
    x: Tensor, y: Tensor, modulation: Tensor, following: Tensor, coded: bool = False
) -> tuple[Tensor, Rows]:
    """x + gate * y, and that modulated for what follows: both [F, S, D].

    Args:
        x: the stream, [F, S, D].
        y: what a sub-layer made, of the same shape.
        modulation: the sub-layer's shift, scale and gate, [F, 3D].
        following: the next one's shift and scale, [F, 2D or more].
        coded: whether the second is in 8 bits.
    """
    kernels = _kernels(x, coded)
    if kernels and coded:
        total, codes, scales = kernels.gated_residual_modulate_e4m3(x, y, modulation, following)
        return total, Quantized(codes, scales, x.dtype)
    if kernels:
        total, u = kernels.gated_residual_modulate(x, y, modulation, following)
        return total, u
    total = x + modulation[:, None, 2 * x.shape[-1] :] * y
    return total, modulate(total, following, coded)


def gelu(x: Tensor, coded: bool = False) -> Rows:
    """The exact GELU; in 8 bits if `coded`."""
    if not coded:
        return F.gelu(x)
    if x.dtype == torch.bfloat16 and (kernels := _kernels(x, coded)):
        codes, scales = kernels.gelu_quantize(x)
        return Quantized(codes, scales, x.dtype)
    return quantize(F.gelu(x))


def queries_and_keys(
    q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], rotation: Rotation
) -> tuple[Tensor, Tensor]:
    """RMSNorm of each head, then rotation: [B, N, heads * E] -> [B, heads, N, E] both.

    q and k may be slices of one packed product.
    """
    if kernels := _kernels(q):
        # Tokens first in memory, as v and the output are: attention takes both, and merging heads moves nothing.
        normed = kernels.qk_norm_rope(q, k, list(weights), list(rotation.tables))
        return normed[0].transpose(1, 2), normed[1].transpose(1, 2)
    cos, sin = rotation.of_tokens
    q, k = (normalized_heads(x, w) for x, w in zip((q, k), weights, strict=True))
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def normalized_heads(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm of each head: [B, N, heads * E] -> [B, heads, N, E]."""
    return F.rms_norm(split_heads(x, len(weight)), weight.shape, weight, EPS)


def split_heads(x: Tensor, width: int) -> Tensor:
    """[B, N, heads * width] -> [B, heads, N, width], a view."""
    return torch.unflatten(x, -1, (-1, width)).transpose(1, 2)


def merge_heads(y: Tensor) -> Tensor:
    """[B, heads, N, E] -> [B, N, D]."""
    return y.transpose(1, 2).flatten(2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel j with channel j + E/2, in float32 at least, back in the dtype of x."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def _kernels(x: Tensor, coded: bool = False) -> Any:
    """The operators over our kernels, or those that write 8 bits, if they can compute on x; else None."""
    if not x.is_cuda or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    from predict2_kernels import library

    if library() is None:
        return None
    from predict2_kernels import fp8_ops, torch_ops  # registers them

    return fp8_ops if coded else torch_ops
