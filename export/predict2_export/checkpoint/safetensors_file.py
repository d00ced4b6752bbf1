# SPDX-License-Identifier: Apache-2.0
"""A safetensors file: where every tensor's numbers lie."""

import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from predict2_spec.errors import CheckpointError

from .stored import Place, StoredTensor, contiguous_strides, stored_at
from .wording import short

_HEADER_SIZE = struct.Struct("<Q")
_MAX_HEADER_SIZE = 2**24  # the largest network's takes 2**17
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of a file.

    Raises:
        CheckpointError: the file is damaged, cut short, or has a dtype that torch lacks.
    """
    try:
        with path.open("rb") as file:
            (header_size,) = _HEADER_SIZE.unpack(file.read(_HEADER_SIZE.size))
        if header_size > _MAX_HEADER_SIZE:
            raise SafetensorError(f"header of {header_size} bytes")
        with safe_open(path, framework="pt") as header:  # checks it, to the last byte of the file
            slices = {key: header.get_slice(key) for key in header.offset_keys()}
            found = {key: (s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except (SafetensorError, OSError, struct.error) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({short(error)}); download it again"
        ) from error
    if not found:
        raise CheckpointError(f"{path} holds no tensors; download it again")
    # The format has no gaps: each tensor begins where the one before it ends.
    state, offset = {}, _HEADER_SIZE.size + header_size
    for key, (dtype, shape) in found.items():
        if dtype not in _DTYPES:
            raise CheckpointError(
                f"{path} holds {key} as {dtype}, which is none of {', '.join(_DTYPES)}; "
                "use the checkpoint in bf16 or fp32"
            )
        tensor = _stored(path, offset, shape, _DTYPES[dtype])
        state[key] = tensor
        offset += tensor.nbytes
    return state


def _stored(path: Path, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> StoredTensor:
    strides = contiguous_strides(shape)
    nbytes = shape[0] * strides[0] * dtype.itemsize if shape else dtype.itemsize
    return stored_at(Place(path, offset, nbytes, shape, strides, dtype))
