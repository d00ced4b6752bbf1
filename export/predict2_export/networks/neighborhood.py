# SPDX-License-Identifier: Apache-2.0
"""Sparse self-attention of the networks that were trained with neighborhoods, in plain torch.

The reference that kernels are checked against: exact, and slow where windows overlap much.

Dims in comments: B batch, N tokens = T*h*w of the grid, E channels of an attention head.
"""

from itertools import groupby, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import Axes, Neighborhood


class Tile(NamedTuple):
    """Positions of one axis: queries that share a window, and the keys in it."""

    queries: slice
    keys: slice


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, grid: Axes, neighborhood: Neighborhood
) -> Tensor:
    """Attention in which a query sees the keys of its window only, as NATTEN 0.21 defines it.

    A window is a product of one window an axis. So the grid falls into tiles of queries that see
    the same keys, and each tile is a small dense attention: memory beyond the inputs and the output
    is that of one tile.

    Args:
        q: [B, heads, N, E], any floating dtype; tokens by frame, row and column.
        k: the same shape and dtype.
        v: the same shape and dtype.
        grid: (T, h, w).
        neighborhood: in tokens of this very grid; it isn't scaled.

    Returns:
        [B, heads, N, E] in the dtype of `q`.

    Raises:
        InvalidRequestError: a window with its dilation is longer than its axis, or shorter than its
            stride.
    """
    axes = zip(grid, neighborhood.window, neighborhood.stride, neighborhood.dilation, strict=True)
    q, k, v = (x.reshape(*x.shape[:2], *grid, x.shape[-1]) for x in (q, k, v))
    out = torch.empty_like(q)  # [B, heads, T, h, w, E]
    for t, rows, columns in product(*(axis_tiles(*axis) for axis in axes)):
        queries = (..., t.queries, rows.queries, columns.queries, slice(None))
        keys = (..., t.keys, rows.keys, columns.keys, slice(None))
        y = F.scaled_dot_product_attention(
            q[queries].flatten(2, 4), k[keys].flatten(2, 4), v[keys].flatten(2, 4)
        )
        out[queries] = y.view_as(out[queries])
    return out.flatten(2, 4)


def axis_tiles(length: int, window: int | None, stride: int, dilation: int) -> list[Tile]:
    """Share the positions 0..length-1 of an axis among tiles; a window of None is the whole axis.

    Positions with the same remainder by `dilation` form a group of n positions, which sees nothing
    of the others. In a group, by index: query i shares the window of its leader,
    min(i - i % stride + stride // 2, n - 1), which begins at leader - window // 2, or as much
    later or earlier as it takes to lie in 0..n-1 whole.

    Raises:
        InvalidRequestError: a dilated window is longer than the axis, or a window shorter than its
            stride.
    """
    window = length if window is None else window
    if not stride <= window <= length // dilation:
        raise InvalidRequestError(
            f"a window of {window} tokens with stride {stride} and dilation {dilation} doesn't fit an axis of {length}; "
            f"it must have {stride} to {length // dilation}"
        )
    tiles = []
    for first in range(dilation):
        count = len(range(first, length, dilation))

        def start(index: int, count: int = count) -> int:
            leader = min(index - index % stride + stride // 2, count - 1)
            return min(max(leader - window // 2, 0), count - window)

        for begin, sharing in groupby(range(count), key=start):
            indices = list(sharing)
            tiles.append(
                Tile(
                    _positions(first, dilation, indices[0], indices[-1] + 1),
                    _positions(first, dilation, begin, begin + window),
                )
            )
    return tiles


def _positions(first: int, dilation: int, begin: int, end: int) -> slice:
    """Positions of the indices begin..end-1 of the group that starts at `first`."""
    return slice(first + begin * dilation, first + (end - 1) * dilation + 1, dilation)
