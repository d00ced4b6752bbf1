# SPDX-License-Identifier: Apache-2.0
"""Cosines and sines of the denoiser's rotary angles, cut to a grid of tokens."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import Axes, DitSpec

THETA = 10000.0  # base of the rotary and of the time frequencies


@dataclass(frozen=True)
class Rotation:
    """Tables [2, positions, channels] in float32 of frames, rows and columns: cosines, then sines."""

    tables: tuple[Tensor, Tensor, Tensor]

    @cached_property
    def of_tokens(self) -> Tensor:
        """Those of every token, [2, N, E/2]; tokens by frame, row and column. Kernels do without it."""
        frames, rows, columns = self.tables
        grid = frames.shape[1], rows.shape[1], columns.shape[1]
        parts = [
            frames[:, :, None, None].expand(-1, *grid, -1),
            rows[:, None, :, None].expand(-1, *grid, -1),
            columns[:, None, None].expand(-1, *grid, -1),
        ]
        return torch.cat(parts, dim=-1).flatten(1, 3)


def rotation(spec: DitSpec, grid: Axes, device: torch.device) -> Rotation:
    """The tables of a grid (T, h, w).

    Raises:
        InvalidRequestError: the grid is larger than the network's.
    """
    if any(size > most for size, most in zip(grid, spec.max_grid, strict=True)):
        raise InvalidRequestError(
            f"a grid of {list(grid)} tokens was given and the network takes {list(spec.max_grid)} at most; "
            "ask for fewer frames or a smaller picture"
        )
    dtype: torch.dtype = getattr(torch, spec.rope_dtype)
    axes = zip(grid, spec.rope_dims, spec.rope_scale, strict=True)
    frames, rows, columns = (_table(*axis, dtype).to(device) for axis in axes)
    return Rotation((frames, rows, columns))


def _table(positions: int, channels: int, scale: float, dtype: torch.dtype) -> Tensor:
    """[2, positions, channels/2] in float32, of angles formed in `dtype` step by step as the original forms them.

    In bf16 every step rounds, the base included, so a table must be made as all others are: on the CPU.
    """
    base = torch.tensor(THETA * scale ** (channels / (channels - 2)), dtype=dtype)
    exponents = torch.arange(0, channels, 2, dtype=torch.float32) / channels
    frequencies = 1.0 / base ** exponents.to(dtype)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32).to(dtype), frequencies)
    return torch.stack([angles.float().cos(), angles.float().sin()])
