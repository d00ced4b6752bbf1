# SPDX-License-Identifier: Apache-2.0
"""Is the engine's answer the torch module's answer? Random inputs through both, at a size not exported at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Distance(NamedTuple):
    """Of an answer from a reference, whatever their scale."""

    cosine: float
    max_error: float  # largest |difference| over the largest |reference|


@dataclass(frozen=True)
class Answer:
    """What a module made of random inputs; kept so that module and engine needn't be in memory at once."""

    inputs: Arrays
    outputs: Arrays


def answer(graph: ExportGraph, seed: int = 0) -> Answer:
    """The module's answer to random inputs."""
    inputs = random_inputs(graph, seed)
    return Answer(inputs, run_module(graph, inputs))


def run_module(graph: ExportGraph, inputs: Arrays) -> Arrays:
    """What the graph's module makes of inputs, on its own device and in its own dtype; floats come back as float32.

    Convolutions in float32 keep all its bits: left alone, a GPU rounds what they multiply to 10.
    """
    like = next(graph.module.parameters(), torch.empty(0))
    tensors = (torch.from_numpy(array).to(like.device) for array in inputs.values())
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with torch.no_grad(), exact:
        outputs = graph.module(*(t.to(like.dtype) if t.is_floating_point() else t for t in tensors))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    plain = (t.float().cpu().numpy() for t in outputs)
    return dict(zip(graph.output_names, plain, strict=True))


def verify(name: str, expected: Answer, engine: Engine, limits: Limits) -> Verification:
    """Compare the engine's answer with the module's; the worst output counts.

    Raises:
        VerificationError: an output is beyond the limits.
    """
    found = distance(expected.outputs, engine(expected.inputs))
    return within(name, found, limits, otherwise="this engine isn't installed")


def within(name: str, found: Distance, limits: Limits, otherwise: str) -> Verification:
    """The record of a distance that is within the limits; if it isn't, the error says what follows.

    Raises:
        VerificationError: it isn't.
    """
    cosine, error = found
    if not (cosine >= limits.min_cosine and error <= limits.max_error):  # NaN fails too
        raise VerificationError(
            f"{name}: the engine's cosine with the torch module is {cosine:.7f} (limit {limits.min_cosine:.7f}) and its "
            f"largest error {error:.2e} (limit {limits.max_error:.1e}); {otherwise}"
        )
    return Verification(cosine, limits.min_cosine, error, limits.max_error)


def random_inputs(
    graph: ExportGraph, seed: int = 0, shapes: Mapping[str, Sequence[int]] | None = None
) -> Arrays:
    """Inputs of a graph in float32: normal numbers, and of ids and masks what the examples say is sensible.

    Args:
        graph: whose inputs.
        seed: of the normal numbers.
        shapes: of the inputs, by name; without them those of the examples.
    """
    generator = torch.Generator().manual_seed(seed)
    examples = zip(graph.input_names, graph.args, strict=True)
    return {
        name: _random_like(example, (shapes or {}).get(name, example.shape), generator).numpy()
        for name, example in examples
    }


def _random_like(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if example.is_floating_point():
        return torch.randn(tuple(shape), generator=generator)
    for axis, size in enumerate(shape):  # rows again and again until there are enough
        example = example.index_select(axis, torch.arange(size) % example.shape[axis])
    return example


def distance(reference: Arrays, actual: Mapping[str, NDArray[Any]]) -> Distance:
    """How far an answer is from the reference; the worst output counts, and NaN is infinitely far.

    Raises:
        KeyError: an output is missing.
    """
    cosines, errors = [1.0], [0.0]
    for name, expected in reference.items():
        a = expected.astype(np.float64).ravel()
        b = actual[name].astype(np.float64).ravel()
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return Distance(-1.0, np.inf)
        if not a.any() and not b.any():
            continue  # a cache that is still empty has no direction
        cosines.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300)))
        errors.append(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-300)))
    return Distance(min(cosines), max(errors))
