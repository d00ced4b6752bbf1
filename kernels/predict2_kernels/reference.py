# SPDX-License-Identifier: Apache-2.0
"""Every kernel in plain torch: the truth for tests and the baseline for benchmarks."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of every norm
E4M3 = torch.float8_e4m3fn
SMALLEST_SCALE = 2.0**-64  # so that a row of zeros has one with an inverse


def cfg_ab2_step(
    latents: Tensor,
    flow_cond: Tensor,
    flow_uncond: Tensor | None,
    previous_x0: Tensor,
    condition: Tensor | None,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """(new latents, x0) for FP32 latents [C, T, ...] and network outputs of the same shape.

    `step` holds five float64: time, guidance, keep, now, before, as in `cfg_ab2_step.h`. `condition` is the first
    frames, [C, K, ...].
    """
    time, rest, guidance = torch.stack([step[0], 1 - step[0], step[1]]).to(latents.dtype)

    def predict(flow: Tensor) -> Tensor:
        x0: Tensor = rest * latents - time * flow.to(latents.dtype)
        if condition is not None:
            x0 = torch.cat([condition, x0[:, condition.shape[1] :]], dim=1)
        return x0

    x0 = predict(flow_cond)
    if flow_uncond is not None:
        x0 = x0 + guidance * (x0 - predict(flow_uncond))
    new = step[2] * latents.double() + step[3] * x0.double() + step[4] * previous_x0.double()
    return new.to(latents.dtype), x0


def adaln_modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """LayerNorm of x [..., D] without weights, times 1 + scale, plus shift: like x.

    `modulation` is [..., parts * D], shift and scale first, a row for each frame; the rows of x are
    theirs in turn, equally many for each. In float32 at least, rounded once.
    """
    return _adaln_modulate(x, modulation).to(x.dtype)


def _adaln_modulate(x: Tensor, modulation: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    frames = modulation.flatten(0, -2)
    shift, scale = (part(frames, i, x.shape[-1]).to(wide) for i in range(2))
    rows = x.reshape(len(frames), -1, x.shape[-1]).to(wide)
    normed = F.layer_norm(rows, rows.shape[-1:], eps=EPS)
    return (normed * (1 + scale) + shift).view(x.shape)


def quantize_rows(u: Tensor, dtype: torch.dtype = E4M3) -> tuple[Tensor, Tensor]:
    """(codes [..., D], scales [..., 1] in float32) of u [..., D]: u is about codes * scales.

    `row_scales` and `codes_of`. Flat, those of e4m3 are what `torch._scaled_mm` takes with scales by row.
    """
    scales = row_scales(u, dtype)
    return codes_of(u, scales, dtype), scales


def row_scales(u: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """max(max |u| / 448, 2^-64) of each row of u [..., D], in float32: [..., 1]. For int8 127 instead of 448."""
    # An array of its own, because torch on a GPU multiplies by a number's inverse.
    largest = torch.full((), _largest(dtype), device=u.device)
    return (u.float().abs().amax(-1, keepdim=True) / largest).clamp_min(SMALLEST_SCALE)


def codes_of(u: Tensor, scales: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
    """u * (1 / scale) in e4m3 or int8: saturating, each operation rounded to float32, ties to even."""
    largest = _largest(dtype)
    scaled = (u.float() * scales.reciprocal()).clamp(-largest, largest)
    if not dtype.is_floating_point:
        scaled = scaled.round().nan_to_num(0.0)
    return scaled.to(dtype)


def _largest(dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).max if dtype.is_floating_point else torch.iinfo(dtype).max)


def adaln_modulate_e4m3(x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of `adaln_modulate` before its rounding."""
    return quantize_rows(_adaln_modulate(x, modulation))


def gated_residual(x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
    """x + gate * y for x [..., D], y of as many rows and modulation [..., 3 * D], the gate last.

    Product and sum are both rounded to the dtype of x, as they are tensors in the network.
    """
    frames = modulation.flatten(0, -2)
    product = part(frames, 2, x.shape[-1]) * y.reshape(len(frames), -1, x.shape[-1])
    return x + product.view(x.shape)


def gated_residual_modulate(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[Tensor, Tensor]:
    """`gated_residual`, and its `adaln_modulate` by the next sub-layer's modulation."""
    total = gated_residual(x, y, modulation)
    return total, adaln_modulate(total, next_modulation)


def gated_residual_modulate_e4m3(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`gated_residual`, and its `adaln_modulate_e4m3` by the next sub-layer's modulation."""
    total = gated_residual(x, y, modulation)
    return total, *adaln_modulate_e4m3(total, next_modulation)


def gelu_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of the exact GELU of x [..., D], in float32 at least and not rounded before."""
    return quantize_rows(F.gelu(x.to(torch.promote_types(x.dtype, torch.float32))))


def part(frames: Tensor, index: int, width: int) -> Tensor:
    """[frames, parts * D] -> one part, [frames, 1, D]."""
    return frames[:, None, index * width : (index + 1) * width]


@dataclass(frozen=True)
class Rotary:
    """Cosines and sines [2, positions, channels] of each axis, cut to the grid of the tokens."""

    frames: Tensor
    rows: Tensor
    columns: Tensor


def qk_norm_rope(
    x: Tensor,
    weight: Tensor,
    rotary: Rotary | None = None,
    scale: float = 1.0,
    order: Tensor | None = None,
) -> Tensor:
    """RMSNorm of each head of queries or keys [B, N, heads * E] and rotation: [B, N, heads, E].

    Channel j turns with j + E/2 by the angles of the token's frame, row and column, one axis after
    the other. With `order` [N] token i of the result is token order[i]. In float32 at least, rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    heads = x.view(*x.shape[:-1], -1, len(weight)).to(wide)
    inverse = torch.rsqrt(heads.square().mean(-1, keepdim=True) + EPS)
    normed = heads * inverse * weight.to(wide) * scale
    if rotary is not None:
        cos, sin = angles(rotary)
        first, second = normed.chunk(2, dim=-1)
        normed = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    if order is not None:
        normed = normed[:, order]
    return normed.to(x.dtype)


def qk_prep(
    x: Tensor,
    weight: Tensor,
    rotary: Rotary | None = None,
    scale: float = 1.0,
    order: Tensor | None = None,
    *,
    dtype: torch.dtype,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(codes [B, heads, N, E], scales [B, heads, N]): `quantize_rows` to e4m3 or int8 of `qk_norm_rope`.

    Before its rounding, and less `shift` [heads, E], which changes no softmax over keys.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = qk_norm_rope(wide, weight, rotary, scale, order).transpose(1, 2)
    if shift is not None:
        normed = normed - shift[:, None]
    codes, scales = quantize_rows(normed, dtype)
    return codes, scales.squeeze(-1)


def v_scales(v: Tensor, head_dim: int) -> Tensor:
    """`row_scales` of each channel of values [B, N, heads * E], over the tokens: [B, heads, E]."""
    return row_scales(_transposed(v, head_dim)).squeeze(-1)


def v_prep(v: Tensor, scales: Tensor, order: Tensor | None = None) -> Tensor:
    """`codes_of` values [B, N, heads * E] by scales [B, heads, E], transposed: [B, heads, E, N'] in e4m3.

    N' is N rounded up to 16, with zeros; before them token i is token order[i], where there is an order [N].
    """
    values = _transposed(v, scales.shape[-1])
    if order is not None:
        values = values[..., order]
    padded = torch.zeros((*values.shape[:-1], -(-v.shape[1] // 16) * 16), device=v.device).to(E4M3)
    padded[..., : v.shape[1]] = codes_of(values, scales[..., None])
    return padded


def _transposed(v: Tensor, head_dim: int) -> Tensor:
    """[B, N, heads * E] -> [B, heads, E, N]."""
    return torch.unflatten(v, -1, (-1, head_dim)).movedim(1, -1)


def angles(rotary: Rotary) -> Tensor:
    """The three tables -> cosines and sines of every token, [2, N, 1, E/2]."""
    shape = [table.shape[1] for table in (rotary.frames, rotary.rows, rotary.columns)]
    expanded = [
        rotary.frames[:, :, None, None].expand(-1, -1, shape[1], shape[2], -1),
        rotary.rows[:, None, :, None].expand(-1, shape[0], -1, shape[2], -1),
        rotary.columns[:, None, None].expand(-1, shape[0], shape[1], -1, -1),
    ]
    return torch.cat(expanded, dim=-1).flatten(1, 3)[:, :, None]


def rms_silu(x: Tensor, gamma: Tensor, silu: bool = True) -> Tensor:
    """x / max(|x|, 1e-12) * sqrt(C) * gamma over the channels of x [B, C, ...], and its SiLU: like x.

    `gamma` has C elements. In float32 at least, rounded once.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    channels = x.shape[1]
    norm = x.to(wide).square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)
    of_channel = gamma.to(wide).view(channels, *[1] * (x.ndim - 2))
    normed = x.to(wide) / norm * channels**0.5 * of_channel
    return (F.silu(normed) if silu else normed).to(x.dtype)
