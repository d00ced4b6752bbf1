# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention against masks that are drawn query by query from the definition."""

import math
from itertools import product

import pytest
import torch

from predict2_export.networks.neighborhood import axis_tiles, neighborhood_attention
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import (
    DILATED,
    PATCHES_3,
    PATCHES_5,
    PATCHES_7,
    SLABS,
    Neighborhood,
)

KINDS = {"A": DILATED, "B": SLABS, "C": PATCHES_3, "D": PATCHES_5, "E": PATCHES_7}


def random_tokens(grid, dtype=torch.float64, heads=2, width=8, batch=2):
    generator = torch.Generator().manual_seed(math.prod(grid))
    shape = (3, batch, heads, math.prod(grid), width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def masked_attention(q, k, v, mask):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


CASES = {  # grid, window, stride, dilation
    "odd windows": ((3, 5, 7), (3, 3, 5), (1, 1, 1), (1, 1, 1)),
    "even windows": ((4, 6, 8), (2, 4, 6), (1, 1, 1), (1, 1, 1)),
    "whole time": ((3, 6, 9), (None, 4, 3), (1, 1, 1), (1, 1, 1)),
    "whole axes": ((2, 5, 6), (None, None, None), (1, 1, 1), (1, 1, 1)),
    "single tokens": ((2, 3, 4), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "odd strides": ((2, 9, 12), (2, 5, 4), (1, 3, 3), (1, 1, 1)),
    "even strides": ((2, 8, 12), (2, 5, 6), (2, 2, 4), (1, 1, 1)),
    "strides that don't divide the axis": ((3, 7, 11), (2, 4, 5), (2, 3, 4), (1, 1, 1)),
    "a last row of one query": ((1, 9, 13), (1, 6, 6), (1, 4, 6), (1, 1, 1)),
    "strides as long as windows": ((2, 8, 9), (2, 4, 3), (2, 4, 3), (1, 1, 1)),
    "dilation": ((2, 6, 12), (2, 3, 3), (1, 1, 1), (1, 2, 4)),
    "uneven groups": ((5, 7, 11), (2, 2, 3), (1, 1, 1), (2, 3, 3)),
    "uneven groups with strides": ((3, 11, 13), (1, 3, 4), (1, 2, 3), (2, 3, 3)),
    "dilation as far as it goes": ((2, 7, 9), (1, 1, 2), (1, 1, 2), (2, 7, 4)),
    "one frame": ((1, 10, 6), (1, 3, 4), (1, 2, 4), (1, 3, 1)),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_is_the_masked_one(case, neighborhood_mask):
    grid, *settings = CASES[case]
    neighborhood = Neighborhood(*settings)
    q, k, v = random_tokens(grid)
    expected = masked_attention(q, k, v, neighborhood_mask(grid, neighborhood))
    y = neighborhood_attention(q, k, v, grid, neighborhood)
    # float64 sums of at most 200 terms near 1, taken in another order
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(2, 11, 20), (3, 9, 13)], ids=["quarter", "uneven"])
def test_attention_of_the_released_kinds_is_the_masked_one(kind, grid, neighborhood_mask):
    neighborhood = KINDS[kind].on(grid)
    q, k, v = random_tokens(grid, batch=1)
    expected = masked_attention(q, k, v, neighborhood_mask(grid, neighborhood))
    y = neighborhood_attention(q, k, v, grid, neighborhood)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)


# Measured 7e-7 and 0.0036, half a bf16 step of the largest outputs, 1.5.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 5e-6), (torch.bfloat16, 2**-7)])
def test_attention_in_lower_precision_is_near_the_exact_one(dtype, limit, neighborhood_mask):
    grid, neighborhood = (3, 7, 11), Neighborhood((None, 4, 5), (1, 3, 4), (1, 1, 2))
    q, k, v = random_tokens(grid, dtype)
    y = neighborhood_attention(q, k, v, grid, neighborhood)
    assert y.dtype == dtype
    mask = neighborhood_mask(grid, neighborhood)
    expected = masked_attention(q.double(), k.double(), v.double(), mask)
    assert (y.double() - expected).abs().max() < limit


def test_whole_windows_are_dense_attention():
    grid = (2, 5, 6)
    q, k, v = random_tokens(grid)
    y = neighborhood_attention(q, k, v, grid, Neighborhood((None, None, None)))
    everything = torch.ones(60, 60, dtype=torch.bool)
    torch.testing.assert_close(y, masked_attention(q, k, v, everything), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_on_the_full_plane_is_the_masked_one_at_any_query(kind, seen):
    grid = (1, 44, 80)
    neighborhood = KINDS[kind].on(grid)
    q, k, v = random_tokens(grid, heads=1, batch=1)
    y = neighborhood_attention(q, k, v, grid, neighborhood)
    corners = [(row, column) for row in (0, 43) for column in (0, 79)]
    for row, column in [*corners, (3, 8), (21, 39), (22, 41), (40, 5), (9, 71)]:
        rows, columns = (
            seen(position, grid[axis], *(part[axis] for part in settings(neighborhood)))
            for axis, position in ((1, row), (2, column))
        )
        keys = [80 * r + c for r, c in product(rows, columns)]
        query = 80 * row + column
        expected = masked_attention(
            q[..., query : query + 1, :], k[..., keys, :], v[..., keys, :], torch.tensor(True)
        )
        torch.testing.assert_close(y[..., query : query + 1, :], expected, rtol=0, atol=1e-13)


def settings(neighborhood):
    return neighborhood.window, neighborhood.stride, neighborhood.dilation


# Share of the plane's keys that any query sees: published digits.
SHARES = {"A": 0.018, "B": 0.055, "C": 0.082, "D": 0.227, "E": 0.445}


@pytest.mark.parametrize("kind", KINDS)
def test_every_query_of_the_plane_sees_the_published_share_of_its_keys(kind):
    keys_of = []  # for both axes: query -> number of keys
    for length, *axis in list(zip((24, 44, 80), *settings(KINDS[kind]), strict=True))[1:]:
        counts = [0] * length
        for tile in axis_tiles(length, *axis):
            for query in range(length)[tile.queries]:
                counts[query] += len(range(length)[tile.keys])
        keys_of.append(set(counts))
    (rows,), (columns,) = keys_of  # all queries have as many
    assert rows * columns / (44 * 80) == pytest.approx(SHARES[kind], abs=5e-4)


def tiles(*axis):
    """Tiles of an axis as pairs of position lists."""
    positions = range(axis[0])
    return [
        (list(positions[tile.queries]), list(positions[tile.keys])) for tile in axis_tiles(*axis)
    ]


def test_windows_are_shifted_at_borders_and_even_ones_lean_left():
    assert tiles(6, 3, 1, 1) == [
        ([0, 1], [0, 1, 2]),
        ([2], [1, 2, 3]),
        ([3], [2, 3, 4]),
        ([4, 5], [3, 4, 5]),
    ]
    assert tiles(6, 4, 1, 1) == [
        ([0, 1, 2], [0, 1, 2, 3]),
        ([3], [1, 2, 3, 4]),
        ([4, 5], [2, 3, 4, 5]),
    ]


def test_strides_as_long_as_windows_are_blocks():
    assert tiles(8, 4, 4, 1) == [([0, 1, 2, 3], [0, 1, 2, 3]), ([4, 5, 6, 7], [4, 5, 6, 7])]


def test_queries_of_a_stride_share_the_window_of_their_right_middle_one():
    # leaders 2, 6 and, because 10 is past the end, 8
    assert tiles(9, 5, 4, 1) == [
        ([0, 1, 2, 3], [0, 1, 2, 3, 4]),
        ([4, 5, 6, 7, 8], [4, 5, 6, 7, 8]),
    ]


def test_dilated_groups_do_not_see_each_other():
    assert tiles(7, 2, 1, 3) == [
        ([0, 3], [0, 3]),
        ([6], [3, 6]),
        ([1, 4], [1, 4]),
        ([2, 5], [2, 5]),
    ]


def test_the_released_patches_are_few_and_dense():
    # 44 rows in windows of 12 a stride of 4, 80 columns in windows of 24 a stride of 8
    assert len(tiles(44, 12, 4, 1)) == 9
    assert len(tiles(80, 24, 8, 1)) == 8
    # groups of 4 rows and 16 columns are whole, so each is one dense tile
    assert len(tiles(44, 4, 1, 11)) == 11
    assert len(tiles(80, 16, 1, 5)) == 5


@pytest.mark.parametrize(
    ("axis", "limits"),
    [((6, 7, 1, 1), "1 to 6"), ((12, 5, 1, 3), "1 to 4"), ((9, 3, 4, 1), "4 to 9")],
    ids=["too long", "too long when dilated", "shorter than its stride"],
)
def test_windows_that_do_not_fit_are_refused(axis, limits):
    with pytest.raises(InvalidRequestError, match=f"a window of {axis[1]} tokens.*{limits}"):
        axis_tiles(*axis)
