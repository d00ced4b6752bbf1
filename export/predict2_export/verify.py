# SPDX-License-Identifier: Apache-2.0
"""Is the engine's answer the torch module's answer? Random inputs through both, at a size not exported at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from predict2_runtime.engines import Engine
from predict2_spec.errors import VerificationError
from predict2_spec.manifest import Verification

from .networks.export_graph import ExportGraph


@dataclass(frozen=True)
class Limits:
    """How far an engine may be from the module it replaces."""

    min_cosine: float
    max_error: float  # largest |difference| over the largest |reference|


# Both compute in float32; what differs is the order of sums, some 1e-6 a layer.
FLOAT32 = Limits(min_cosine=0.99999, max_error=1e-3)


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Answer:
    """What a module made of random inputs; kept so that module and engine needn't be in memory at once."""

    inputs: Arrays
    outputs: Arrays


def answer(graph: ExportGraph, seed: int = 0) -> Answer:
    """The module's answer to random inputs."""
    inputs = _random_inputs(graph, seed)
    with torch.no_grad():
        outputs = graph.module(*inputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    named = dict(zip(graph.output_names, (t.numpy() for t in outputs), strict=True))
    return Answer({key: value.numpy() for key, value in inputs.items()}, named)


def verify(name: str, expected: Answer, engine: Engine, limits: Limits) -> Verification:
    """Compare the engine's answer with the module's; the worst output counts.

    Raises:
        VerificationError: an output is beyond the limits.
    """
    cosine, error = _distance(expected.outputs, engine(expected.inputs))
    if not (cosine >= limits.min_cosine and error <= limits.max_error):  # NaN fails too
        raise VerificationError(
            f"{name}: the engine's cosine with the torch module is {cosine:.7f} (limit {limits.min_cosine}) and its "
            f"largest error {error:.2e} (limit {limits.max_error:.0e}); this engine isn't installed"
        )
    return Verification(cosine, limits.min_cosine, error, limits.max_error)


def _random_inputs(graph: ExportGraph, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _random_like(example, generator)
        for name, example in zip(graph.input_names, graph.args, strict=True)
    }


def _random_like(example: Tensor, generator: torch.Generator) -> Tensor:
    if example.is_floating_point():
        return torch.randn(example.shape, generator=generator)
    return example  # ids and masks: the example says what is sensible


def _distance(
    reference: Mapping[str, NDArray[Any]], actual: Mapping[str, NDArray[Any]]
) -> tuple[float, float]:
    cosines, errors = [], []
    for name, expected in reference.items():
        a = expected.astype(np.float64).ravel()
        b = actual[name].astype(np.float64).ravel()
        if not a.any() and not b.any():
            continue  # a cache that is still empty has no direction
        cosines.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300)))
        errors.append(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300)))
    return min(cosines), max(errors)
