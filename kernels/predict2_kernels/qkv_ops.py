# SPDX-License-Identifier: Apache-2.0
"""Packed queries, keys and values for attention in 8 bits as torch operators; importing this registers them.

Beside `torch_ops`, whose rules hold here too. Heads have 128 channels; on CUDA all but tables, shifts and scales is bfloat16.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import library as torch_library

from . import E4M3, INT8, reference
from .torch_ops import (
    _NAMESPACE,
    _check_order,
    _contiguous,
    _given,
    _head_dim,
    _launch,
    _of_tables,
    _pointer,
    _row_stride,
)

HEAD_DIM = 128
_CODES = {torch.int8: INT8, reference.E4M3: E4M3}
_Coded = tuple[Tensor, Tensor, Tensor, Tensor]


@torch_library.custom_op(f"{_NAMESPACE}::qk_prep", mutates_args=())
def qk_prep(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    dtype: torch.dtype,
    q_scale: float = 1.0,
    k_shift: Tensor | None = None,
    order: Tensor | None = None,
) -> _Coded:
    """As `reference.qk_prep` of q and k [B, N, heads * 128]: codes and scales of q, codes and scales of k.

    `dtype` is int8 or float8_e4m3fn; `k_shift` [heads, 128] in float32; the others as for `torch_ops.qk_norm_rope`.
    """
    _check(q, k, weights, tables, dtype, k_shift, order)
    rotary = reference.Rotary(*tables) if tables else None
    of_q = reference.qk_prep(q, weights[0], rotary, q_scale, order, dtype=dtype)
    of_k = reference.qk_prep(k, weights[1], rotary, order=order, dtype=dtype, shift=k_shift)
    codes_q, scales_q, codes_k, scales_k = (t.contiguous() for t in (*of_q, *of_k))
    return codes_q, scales_q, codes_k, scales_k


@qk_prep.register_kernel("cuda")
def _(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    dtype: torch.dtype,
    q_scale: float = 1.0,
    k_shift: Tensor | None = None,
    order: Tensor | None = None,
) -> _Coded:
    heads = _check(q, k, weights, tables, dtype, k_shift, order)
    _check_bfloat16(q, k, *weights)
    _contiguous(*weights, *tables)
    out = *_like_codes(q, heads, dtype), *_like_codes(k, heads, dtype)
    of_tables, positions, channels = _of_tables(tables)
    _launch(
        "predict2_qk_prep",
        _given(q, k, *weights, *tables, k_shift, order),
        *(_CODES[dtype], q.data_ptr(), k.data_ptr()),
        *(t.data_ptr() for t in weights),
        *(_pointer(k_shift), *of_tables, _pointer(order)),
        *(t.data_ptr() for t in out),
        *(q.shape[0], q.shape[1], heads, _row_stride(q), _row_stride(k)),
        *(*positions, *channels, q_scale),
    )
    return out


@qk_prep.register_fake
def _(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    dtype: torch.dtype,
    q_scale: float = 1.0,
    k_shift: Tensor | None = None,
    order: Tensor | None = None,
) -> _Coded:
    heads = _check(q, k, weights, tables, dtype, k_shift, order)
    return *_like_codes(q, heads, dtype), *_like_codes(k, heads, dtype)


@torch_library.custom_op(f"{_NAMESPACE}::v_scales", mutates_args=())
def v_scales(v: Tensor) -> Tensor:
    """As `reference.v_scales` of v [B, N, heads * 128]."""
    _heads(v)
    return reference.v_scales(v, HEAD_DIM)


@v_scales.register_kernel("cuda")
def _(v: Tensor) -> Tensor:
    out, (batch, tokens, _) = _like_scales(v), v.shape
    _check_bfloat16(v)
    pointers = v.data_ptr(), out.data_ptr()
    _launch("predict2_v_scales", (v,), *pointers, batch, tokens, _heads(v), _row_stride(v))
    return out


@v_scales.register_fake
def _(v: Tensor) -> Tensor:
    return _like_scales(v)


@torch_library.custom_op(f"{_NAMESPACE}::v_prep", mutates_args=())
def v_prep(v: Tensor, scales: Tensor, order: Tensor | None = None) -> Tensor:
    """As `reference.v_prep` of v [B, N, heads * 128] and scales [B, heads, 128] in float32."""
    _check_values(v, scales, order)
    return reference.v_prep(v, scales, order)


@v_prep.register_kernel("cuda")
def _(v: Tensor, scales: Tensor, order: Tensor | None = None) -> Tensor:
    heads = _check_values(v, scales, order)
    _check_bfloat16(v)
    out = _like_transposed(v, heads)
    _launch(
        "predict2_v_prep",
        _given(v, scales, order),
        *(v.data_ptr(), scales.data_ptr(), _pointer(order), out.data_ptr()),
        *(v.shape[0], v.shape[1], heads, _row_stride(v)),
    )
    return out


@v_prep.register_fake
def _(v: Tensor, scales: Tensor, order: Tensor | None = None) -> Tensor:
    return _like_transposed(v, _check_values(v, scales, order))


def _check(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    dtype: torch.dtype,
    k_shift: Tensor | None,
    order: Tensor | None,
) -> int:
    """Heads of q and k [B, N, heads * 128].

    Raises:
        ValueError: the shapes or dtypes don't fit.
    """
    head_dim = _head_dim(q, k, weights, tables)
    _check_order(order, q, k)
    if head_dim != HEAD_DIM or q.shape != k.shape:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must be alike, of heads of {HEAD_DIM} "
            f"channels, not {head_dim}"
        )
    if dtype not in _CODES:
        raise ValueError(f"codes are int8 or float8_e4m3fn, not {dtype}")
    heads = q.shape[2] // HEAD_DIM
    if k_shift is not None:
        _check_float("k_shift", k_shift, (heads, HEAD_DIM))
    return heads


def _check_values(v: Tensor, scales: Tensor, order: Tensor | None) -> int:
    """Heads of v [B, N, heads * 128], of these scales and order.

    Raises:
        ValueError: the shapes or dtypes don't fit.
    """
    heads = _heads(v)
    _check_order(order, v, v)
    _check_float("scales", scales, (v.shape[0], heads, HEAD_DIM))
    return heads


def _heads(v: Tensor) -> int:
    """Heads of v [B, N, heads * 128].

    Raises:
        ValueError: it has other axes, or no tokens, of which there is no largest value.
    """
    if v.ndim != 3 or v.shape[1] == 0 or v.shape[2] % HEAD_DIM:
        raise ValueError(
            f"v must be [batch, tokens, heads * {HEAD_DIM}] with a token at least, not {tuple(v.shape)}"
        )
    return v.shape[2] // HEAD_DIM


def _check_float(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        raise ValueError(
            f"{name} must be {shape} in float32, not {tuple(tensor.shape)} in {tensor.dtype}"
        )
    _contiguous(tensor)


def _check_bfloat16(*tensors: Tensor) -> None:
    if any(t.dtype != torch.bfloat16 for t in tensors):
        dtypes = ", ".join(str(t.dtype) for t in tensors)
        raise ValueError(f"the tensors must all be bfloat16, not {dtypes}")


def _like_codes(x: Tensor, heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes [B, heads, N, 128] and scales [B, heads, N] of x [B, N, heads * 128], not yet written."""
    shape = (x.shape[0], heads, x.shape[1])
    return x.new_empty((*shape, HEAD_DIM), dtype=dtype), x.new_empty(shape, dtype=torch.float32)


def _like_scales(v: Tensor) -> Tensor:
    return v.new_empty((v.shape[0], _heads(v), HEAD_DIM), dtype=torch.float32)


def _like_transposed(v: Tensor, heads: int) -> Tensor:
    batch, tokens, _ = v.shape
    padded = -(-tokens // 16) * 16
    return v.new_empty((batch, heads, HEAD_DIM, padded), dtype=reference.E4M3)
