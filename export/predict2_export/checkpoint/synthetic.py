# SPDX-License-Identifier: Apache-2.0
"""Seeded random weights for any network, made when they are read: to try out sizes whose files aren't there."""

import math
import zlib
from functools import partial

import torch
from torch import Tensor, nn

from .stored import StoredTensor


def synthetic_weights(
    network: nn.Module, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, StoredTensor]:
    """Normal weights of deviation 1/sqrt(inputs), norms of 1, biases and means of 0.

    Args:
        network: gives names and shapes; may be on the meta device.
        seed: 0 or more; equal seeds give equal weights, whatever order they are read in.
        dtype: of the weights.
    """
    return {
        name: StoredTensor(shape, dtype, partial(_make, name, shape, seed, dtype))
        for name, parameter in network.named_parameters()
        for shape in [tuple(parameter.shape)]
    }


def _make(name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    if name.endswith(("bias", ".running_mean")):
        return torch.zeros(shape, dtype=dtype)
    if math.prod(shape) == shape[0]:  # a norm's weight, one number a channel
        return torch.ones(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    deviation = (shape[0] / math.prod(shape)) ** 0.5
    return torch.empty(shape, dtype=dtype).normal_(0.0, deviation, generator=generator)
