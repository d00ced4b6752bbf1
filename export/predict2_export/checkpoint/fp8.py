# SPDX-License-Identifier: Apache-2.0
"""Weights in FP8, made from stored ones as they are read: one tensor at a time is in memory."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from predict2_export.networks.fp8 import E4M3, e4m3, scale_of

from .stored import StoredTensor

_NUM_ROWS = 1024  # of a weight that are rounded at a time, so that the FP32 copy stays small


def quantized(
    weights: Mapping[str, StoredTensor], input_scales: Mapping[str, float]
) -> dict[str, StoredTensor]:
    """The weights of a network some of whose layers are Fp8Linear, from those of the exact network.

    Args:
        weights: the exact network's.
        input_scales: of every layer in FP8, by the layer's name.

    Returns:
        `weights`, where each of those layers has e4m3 codes for its weight, and both scales in FP32 beside it.
    """
    found = dict(weights)
    for layer, scale in input_scales.items():
        found.update(_of_layer(layer, weights[f"{layer}.weight"], scale))
    return found


def _of_layer(layer: str, weight: StoredTensor, scale: float) -> Iterator[tuple[str, StoredTensor]]:
    rows = weight.shape[:1]
    yield f"{layer}.weight", StoredTensor(weight.shape, E4M3, partial(_codes, weight))
    yield f"{layer}.weight_scale", StoredTensor(rows, torch.float32, partial(_scales, weight))
    yield f"{layer}.input_scale", StoredTensor((), torch.float32, partial(torch.tensor, scale))


def _scales(weight: StoredTensor) -> Tensor:
    """One scale a row, which is an output of the layer: FP32 [out]."""
    low, high = weight.load().aminmax(
        dim=1
    )  # of abs() there would be a copy as large as the weight
    return scale_of(torch.maximum(-low, high))


def _codes(weight: StoredTensor) -> Tensor:
    scales = _scales(weight)
    values = weight.load()
    codes = torch.empty(values.shape, dtype=E4M3)
    for start in range(0, len(values), _NUM_ROWS):
        rows = slice(start, start + _NUM_ROWS)
        codes[rows] = e4m3(values[rows].float() / scales[rows, None])
    return codes
