# SPDX-License-Identifier: Apache-2.0
"""Arrays of any kind as torch's tensors on a device, and back. Imported by what computes with torch only."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from . import Placement

_ALIGNMENT = 256  # bytes; of all memory that CUDA hands out, and what kernels are built on


def as_tensor(array: Any, device: torch.device | str) -> torch.Tensor:
    """An array on `device`: a tensor, a numpy array or whatever speaks DLPack. What is there already isn't copied."""
    if isinstance(array, np.ndarray):
        # torch wants memory that it may write to, in ascending order
        array = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    elif not isinstance(array, torch.Tensor):
        array = torch.utils.dlpack.from_dlpack(array)
    tensor: torch.Tensor = array.to(device)
    return tensor


def for_kernels(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in one piece of memory that begins where kernels may expect it; copied only if it must be."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def as_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as a numpy array; floats as float32, as numpy knows none of the narrower types."""
    array: NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()
    return array


def placement(device: torch.device | str) -> Placement:
    """Between numpy arrays and tensors on `device`."""
    return Placement(lambda array: as_tensor(array, device), as_numpy)
