# SPDX-License-Identifier: Apache-2.0
"""A tensor that lies in a file: its shape and dtype are known, its numbers are read on demand."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from predict2_spec.errors import CheckpointError

from .wording import damaged


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


@dataclass(frozen=True)
class Place:
    """Where a tensor's numbers lie in a file, little-endian; its reader has checked the bounds."""

    path: Path
    offset: int  # of the first byte
    nbytes: int  # up to the last byte; more than the tensor's own where strides leave gaps
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    dtype: torch.dtype
    crc32: int = 0  # of these bytes; 0 where the file has none


def stored_at(place: Place) -> StoredTensor:
    """The tensor at a place."""
    return StoredTensor(place.shape, place.dtype, partial(read, place))


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of a tensor whose last axis moves fastest."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def read(place: Place) -> Tensor:
    """Read a tensor into memory of its own.

    A memory map would do with less code, but the pages it has touched count as the process's
    until the kernel takes them back: loading 45 GB showed as 45 GB.

    Raises:
        CheckpointError: the file is gone, cut short since it was opened, or its checksum is wrong.
    """
    data = torch.empty(place.nbytes, dtype=torch.uint8)
    try:
        with place.path.open("rb", buffering=0) as file:
            file.seek(place.offset)
            view, done = data.numpy().data, 0
            while done < place.nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise CheckpointError(
                        f"{place.path} ends before byte {place.offset + place.nbytes}; download it again"
                    )
                done += count
    except OSError as error:
        raise damaged(place.path, error) from error
    if place.crc32 and zlib.crc32(view) != place.crc32:
        raise CheckpointError(
            f"{place.path} is damaged: the checksum of bytes {place.offset} to "
            f"{place.offset + place.nbytes} is wrong; download it again"
        )
    return data.view(place.dtype).as_strided(place.shape, place.strides)
