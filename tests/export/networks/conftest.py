# SPDX-License-Identifier: Apache-2.0
import pytest
import torch


def seen_from(position, length, window, stride, dilation):
    """Positions of one axis that a query sees, straight from NATTEN's definition.

    Its leader is the right one of the middle two of `stride` queries in a row, or the last one where
    the row is cut short. Its window has half of its tokens before the leader, the larger half if
    they are even, or is the nearest to that which the axis allows.
    """
    group = [p for p in range(length) if p % dilation == position % dilation]
    rows = [group[i : i + stride] for i in range(0, len(group), stride)]
    row = next(row for row in rows if position in row)
    leader = row[stride // 2] if stride // 2 < len(row) else row[-1]
    windows = [group[i : i + window] for i in range(len(group) - window + 1)]
    wanted = group.index(leader) - window // 2
    return min(windows, key=lambda tokens: abs(group.index(tokens[0]) - wanted))


@pytest.fixture(scope="session")
def seen():
    """The keys a query sees on one axis, by brute force."""
    return seen_from


@pytest.fixture(scope="session")
def neighborhood_mask():
    """(grid, neighborhood) -> bool [N, N], true where the query of a row sees the key of a column."""

    def mask(grid, neighborhood):
        axes = []
        settings = zip(
            grid, neighborhood.window, neighborhood.stride, neighborhood.dilation, strict=True
        )
        for length, window, stride, dilation in settings:
            axis = torch.zeros(length, length, dtype=torch.bool)
            for query in range(length):
                axis[query, seen_from(query, length, window or length, stride, dilation)] = True
            axes.append(axis)
        tokens = len(axes[0]) * len(axes[1]) * len(axes[2])
        t, rows, columns = (axis.double() for axis in axes)
        return torch.einsum("ai,bj,ck->abcijk", t, rows, columns).reshape(tokens, tokens) > 0

    return mask
