# SPDX-License-Identifier: Apache-2.0
"""A network's weights as the file that a torch engine loads: safetensors, in the engine's type."""

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from predict2_runtime.engines.torch_engine import SCALE
from predict2_spec.manifest import Graph

from .checkpoint.stored import StoredTensor
from .installation import digest
from .networks.export_graph import ExportGraph
from .networks.fp8 import E4M3

FILE = "main.safetensors"  # of every graph of an engine
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", E4M3: "F8_E4M3"}  # the format's
_NAMES = {torch.float32: "FLOAT", torch.bfloat16: "BFLOAT16", torch.int64: "INT64"}  # ONNX's


def write_safetensors(
    weights: Mapping[str, StoredTensor], path: Path, dtype: torch.dtype
) -> None:  # fmt: skip
    """Write tensors under their names, cast to `dtype` but for 8-bit codes and their scales; one in memory at a time."""
    header, end = {}, 0
    dtypes = {name: _stored_as(name, stored, dtype) for name, stored in weights.items()}
    for name, stored in weights.items():
        begin, end = end, end + math.prod(stored.shape) * dtypes[name].itemsize
        header[name] = {
            "dtype": _CODES[dtypes[name]],
            "shape": stored.shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that numbers begin at a multiple of their size
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, stored in weights.items():
            tensor = stored.load().to(dtypes[name]).contiguous()
            file.write(tensor.flatten().view(torch.uint8).numpy().data)


def _stored_as(name: str, stored: StoredTensor, dtype: torch.dtype) -> torch.dtype:
    if stored.dtype == E4M3:
        return E4M3
    return torch.float32 if name.endswith(SCALE) else dtype


def layers_in_8_bits(path: Path) -> list[str]:
    """Names of the layers that have codes and scales in a file of weights."""
    with safe_open(path, framework="pt") as file:
        return [name.removesuffix(SCALE) for name in file.keys() if name.endswith(SCALE)]  # noqa: SIM118


def describe_graph(graph: ExportGraph, path: Path, dtype: torch.dtype) -> Graph:
    """What the manifest says of a graph whose weights are in `path`."""
    return Graph(
        file=path.name,
        sha256=digest([path]),
        size_bytes=path.stat().st_size,
        inputs={
            name: _describe(example, dtype, free)
            for name, example, free in zip(
                graph.input_names, graph.args, _flat(graph.dynamic_shapes), strict=True
            )
        },
        outputs=dict.fromkeys(graph.output_names, _NAMES[dtype]),
    )


def _flat(dynamic_shapes: tuple[Any, ...]) -> list[Any]:
    """One entry an input; those of `*args` come as a tuple of their own."""
    flat: list[Any] = []
    for free in dynamic_shapes:
        flat += free if isinstance(free, tuple) else [free]
    return flat


def _describe(example: torch.Tensor, dtype: torch.dtype, free: object) -> str:
    """Type and dims as text, the free ones by their names."""
    names = free if isinstance(free, dict) else {}
    kind = dtype if example.is_floating_point() else example.dtype
    dims = [_name(names[axis]) if axis in names else str(n) for axis, n in enumerate(example.shape)]
    return f"{_NAMES[kind]} [{', '.join(dims)}]"


def _name(dim: object) -> str:
    return str(getattr(dim, "__name__", dim))
