# SPDX-License-Identifier: Apache-2.0
"""The kernels as torch operators, `torch.ops.predict2`, on CUDA tensors; importing this registers them.

Elsewhere than on CUDA an operator is its reference, so a program that calls it runs anywhere.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch import library as torch_library

from . import BFLOAT16, FLOAT, KernelError, check, library, reference

_NAMESPACE = "predict2"  # of torch.ops
_DTYPES = {torch.float32: FLOAT, torch.bfloat16: BFLOAT16}


def _dtype(*tensors: Tensor) -> int:
    """The launcher's number of the dtype that all tensors share.

    Raises:
        ValueError: they don't share one, it is none the kernels have, or one is not contiguous.
    """
    found = tensors[0].dtype
    if found not in _DTYPES or any(t.dtype != found for t in tensors):
        dtypes = ", ".join(str(t.dtype) for t in tensors)
        raise ValueError(f"the tensors must all be float32 or all be bfloat16, not {dtypes}")
    _contiguous(*tensors)
    return _DTYPES[found]


def _library() -> ctypes.CDLL:
    """The compiled kernels.

    Raises:
        KernelError: there are none.
    """
    found = library()
    if found is None:
        raise KernelError("the kernels were built without nvcc; install the package again with it")
    return found


def _contiguous(*tensors: Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is not contiguous")


def _device(*tensors: Tensor) -> torch.device:
    """The device that all tensors share.

    Raises:
        ValueError: they don't share one.
    """
    found = tensors[0].device
    if any(t.device != found for t in tensors):
        devices = ", ".join(str(t.device) for t in tensors)
        raise ValueError(f"the tensors must all be on one device, not on {devices}")
    return found


def _launch(name: str, tensors: Sequence[Tensor], *arguments: float | None) -> None:
    """Call a launcher on the device of its inputs, which needn't be the current one.

    Raises:
        ValueError: the inputs are on several devices.
        KernelError: there are no compiled kernels, or the launcher refused.
    """
    with torch.cuda.device(_device(*tensors)):
        stream = torch.cuda.current_stream().cuda_stream
        check(getattr(_library(), name)(*arguments, stream))


def _frames(x: Tensor, modulation: Tensor, parts: int) -> tuple[int, int, int, int]:
    """(frames, tokens of one, width, parts) of x [..., D] and modulation [..., parts * D].

    Raises:
        ValueError: the shapes don't fit, or there are fewer than `parts`.
    """
    width = x.shape[-1]
    frames = modulation.numel() // max(modulation.shape[-1], 1)
    rows = x.numel() // max(width, 1)
    given = modulation.shape[-1] // max(width, 1)
    left = rows % frames if frames else rows
    if given < parts or given * width != modulation.shape[-1] or left:
        raise ValueError(
            f"a modulation of shape {tuple(modulation.shape)} doesn't fit {tuple(x.shape)}: "
            f"it needs {parts} parts of {width} and frames that divide {rows} rows"
        )
    return frames, rows // max(frames, 1), width, given


def _gated(x: Tensor, y: Tensor, modulation: Tensor) -> tuple[int, int, int, int]:
    """`_frames` of a modulation with exactly a shift, a scale and a gate.

    Raises:
        ValueError: it has another number of parts, or y isn't like x.
    """
    sizes = _frames(x, modulation, 3)
    if sizes[3] != 3 or y.numel() != x.numel() or y.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"x {tuple(x.shape)}, y {tuple(y.shape)} and a modulation {tuple(modulation.shape)} of "
            "shift, scale and gate don't fit"
        )
    return sizes


def _gated_twice(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[int, int, int, int]:
    """`_frames` of the next modulation, where the first fits too.

    Raises:
        ValueError: one doesn't fit, or they are of different frames.
    """
    sizes, (frames, *_) = _frames(x, next_modulation, 2), _gated(x, y, modulation)
    if frames != sizes[0]:
        raise ValueError(f"the two modulations differ in frames: {frames} and {sizes[0]}")
    return sizes


def _head_dim(q: Tensor, k: Tensor, weights: Sequence[Tensor], tables: Sequence[Tensor]) -> int:
    """Channels of one head of q and k [B, tokens, heads * E]: E.

    Raises:
        ValueError: the shapes don't fit, or the tables are not float32.
    """
    if q.ndim != 3 or k.ndim != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must be [batch, tokens, channels], alike "
            "in batch and channels"
        )
    lengths = [tuple(t.shape) for t in weights]
    head_dim = weights[0].numel() if weights else 0
    if lengths != [(head_dim,)] * 2 or head_dim == 0 or q.shape[2] % head_dim:
        raise ValueError(
            f"weights {lengths} don't fit: two of one head's channels are needed, which divide "
            f"{q.shape[2]}"
        )
    found = [(tuple(t.shape), t.dtype) for t in tables]
    if len(tables) not in (0, 3) or any(
        t.ndim != 3 or t.shape[0] != 2 or t.dtype != torch.float32 for t in tables
    ):
        raise ValueError(
            f"rotary tables must be none or three of [2, positions, channels] in float32, not {found}"
        )
    positions = math.prod(t.shape[1] for t in tables)
    turned = 2 * sum(t.shape[2] for t in tables)
    if tables and (positions != q.shape[1] or positions != k.shape[1] or turned != head_dim):
        raise ValueError(
            f"rotary tables {found} turn {positions} tokens and {turned} channels, not those of "
            f"q {tuple(q.shape)} and k {tuple(k.shape)} with heads of {head_dim}"
        )
    return head_dim


@torch_library.custom_op(f"{_NAMESPACE}::adaln_modulate", mutates_args=())
def adaln_modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """As `reference.adaln_modulate`."""
    _frames(x, modulation, 2)
    return reference.adaln_modulate(x, modulation)


@adaln_modulate.register_kernel("cuda")
def _(x: Tensor, modulation: Tensor) -> Tensor:
    dtype, sizes = _dtype(x, modulation), _frames(x, modulation, 2)
    out = torch.empty_like(x)
    pointers = (x.data_ptr(), modulation.data_ptr(), out.data_ptr())
    _launch("predict2_adaln_modulate", (x, modulation), dtype, *pointers, *sizes)
    return out


@adaln_modulate.register_fake
def _(x: Tensor, modulation: Tensor) -> Tensor:
    _frames(x, modulation, 2)
    return torch.empty_like(x)


@torch_library.custom_op(f"{_NAMESPACE}::gated_residual", mutates_args=())
def gated_residual(x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
    """As `reference.gated_residual`."""
    _gated(x, y, modulation)
    return reference.gated_residual(x, y, modulation)


@gated_residual.register_kernel("cuda")
def _(x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
    dtype, (frames, tokens, width, _parts) = _dtype(x, y, modulation), _gated(x, y, modulation)
    out = torch.empty_like(x)
    pointers = (x.data_ptr(), y.data_ptr(), modulation.data_ptr(), out.data_ptr())
    sizes = (frames, tokens, width)
    _launch("predict2_gated_residual", (x, y, modulation), dtype, *pointers, *sizes)
    return out


@gated_residual.register_fake
def _(x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
    _gated(x, y, modulation)
    return torch.empty_like(x)


@torch_library.custom_op(f"{_NAMESPACE}::gated_residual_modulate", mutates_args=())
def gated_residual_modulate(
    x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor
) -> tuple[Tensor, Tensor]:
    """As `reference.gated_residual_modulate`."""
    _gated_twice(x, y, modulation, next_modulation)
    return reference.gated_residual_modulate(x, y, modulation, next_modulation)


@gated_residual_modulate.register_kernel("cuda")
def _(x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor) -> tuple[Tensor, Tensor]:
    tensors = (x, y, modulation, next_modulation)
    dtype, sizes = _dtype(*tensors), _gated_twice(*tensors)
    total, out = torch.empty_like(x), torch.empty_like(x)
    pointers = [t.data_ptr() for t in (*tensors, total, out)]
    _launch("predict2_gated_residual_modulate", tensors, dtype, *pointers, *sizes)
    return total, out


@gated_residual_modulate.register_fake
def _(x: Tensor, y: Tensor, modulation: Tensor, next_modulation: Tensor) -> tuple[Tensor, Tensor]:
    _gated_twice(x, y, modulation, next_modulation)
    return torch.empty_like(x), torch.empty_like(x)


@torch_library.custom_op(f"{_NAMESPACE}::qk_norm_rope", mutates_args=())
def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    q_scale: float = 1.0,
    heads_first: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `reference.qk_norm_rope` of q [B, N, heads * E] and k [B, M, heads * E].

    q and k may be slices of a packed QKV [B, N, 3 * heads * E]. `weights` are those of q and k,
    `tables` the three of `reference.Rotary`, or none. The outputs are [B, heads, N, E] where
    `heads_first`, else [B, N, heads, E]. `order` is a permutation [N] of the tokens in int32, for
    block-sparse attention, where M is N.
    """
    _head_dim(q, k, weights, tables)
    _check_order(order, q, k)
    rotary = reference.Rotary(*tables) if tables else None
    outputs = (
        reference.qk_norm_rope(q, weights[0], rotary, q_scale, order),
        reference.qk_norm_rope(k, weights[1], rotary, order=order),
    )
    if heads_first:
        outputs = (outputs[0].transpose(1, 2), outputs[1].transpose(1, 2))
    return outputs[0].contiguous(), outputs[1].contiguous()


@qk_norm_rope.register_kernel("cuda")
def _(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    q_scale: float = 1.0,
    heads_first: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    head_dim = _head_dim(q, k, weights, tables)
    dtype = _dtype(*weights)
    if any(t.dtype != weights[0].dtype for t in (q, k)):
        raise ValueError("q, k and the weights must be of one dtype")
    _contiguous(*tables)
    _check_order(order, q, k)
    out = _like_heads(q, head_dim, heads_first), _like_heads(k, head_dim, heads_first)
    of_tables, positions, channels = _of_tables(tables)
    _launch(
        "predict2_qk_norm_rope",
        _given(q, k, *weights, *tables, order),
        *(dtype, q.data_ptr(), k.data_ptr(), None),
        *(t.data_ptr() for t in weights),
        *of_tables,
        _pointer(order),
        *(t.data_ptr() for t in out),
        *(None, q.shape[0], q.shape[1], k.shape[1], q.shape[-1] // head_dim, head_dim),
        *(_row_stride(q), _row_stride(k), *positions, *channels, q_scale, heads_first),
    )
    return out


@qk_norm_rope.register_fake
def _(
    q: Tensor,
    k: Tensor,
    weights: Sequence[Tensor],
    tables: Sequence[Tensor],
    q_scale: float = 1.0,
    heads_first: bool = False,
    order: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    head_dim = _head_dim(q, k, weights, tables)
    _check_order(order, q, k)
    return _like_heads(q, head_dim, heads_first), _like_heads(k, head_dim, heads_first)


def _check_order(order: Tensor | None, q: Tensor, k: Tensor) -> None:
    """That an order of tokens is one of these queries and keys; its entries are the caller's matter.

    Raises:
        ValueError: it isn't [tokens] in int32, contiguous, or the keys are of other tokens.
    """
    if order is None:
        return
    tokens = (q.shape[1],)
    if tuple(order.shape) != tokens or k.shape[1:2] != tokens or order.dtype != torch.int32:
        raise ValueError(
            f"an order {tuple(order.shape)} in {order.dtype} must be int32 for each of the tokens, "
            f"as many in q {tuple(q.shape)} as in k {tuple(k.shape)}"
        )
    _contiguous(order)


def _of_tables(tables: Sequence[Tensor]) -> tuple[list[int | None], list[int], list[int]]:
    """(pointers, positions, channels) of the rotary tables for a launcher; nothing of none."""
    if not tables:
        return [None] * 3, [0] * 3, [0] * 3
    return (
        [t.data_ptr() for t in tables],
        [t.shape[1] for t in tables],
        [t.shape[2] for t in tables],
    )


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _like_heads(x: Tensor, head_dim: int, heads_first: bool) -> Tensor:
    batch, tokens, width = x.shape
    heads = width // head_dim
    order = (heads, tokens) if heads_first else (tokens, heads)
    return x.new_empty((batch, *order, head_dim))


def _row_stride(x: Tensor) -> int:
    """Elements from a token to the next.

    Raises:
        ValueError: channels aren't next to each other, or batches not right after one another.
    """
    batch, tokens, width = x.shape
    step = x.stride(1) if tokens > 1 else x.stride(0)
    if x.stride(2) != 1 or (batch > 1 and x.stride(0) != tokens * step) or step < width:
        raise ValueError(
            f"q, k and v must be rows of a [B, N, ...] tensor, not of strides {x.stride()}"
        )
    return int(step)
