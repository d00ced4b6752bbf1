# SPDX-License-Identifier: Apache-2.0
"""A tensor that lies in a file: its shape and dtype are known, its numbers are read on demand."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """What a checkpoint says about one tensor, and how to read it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]  # reads it anew at every call: nothing is kept

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor once it's loaded."""
        return math.prod(self.shape) * self.dtype.itemsize
