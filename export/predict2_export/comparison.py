# SPDX-License-Identifier: Apache-2.0
"""An installed engine beside the torch module and ONNX Runtime, all on the same inputs.

The reference is the module in float32. An engine in a narrower type can't equal it: how far that type alone takes it
is what the module itself shows when it computes in that type, and the engine may be twice as far.
"""

import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from predict2_runtime.engines import open_engine
from predict2_runtime.engines.onnxruntime import open_onnxruntime
from predict2_spec.errors import CheckpointError, InvalidRequestError
from predict2_spec.manifest import Manifest, Verification

from .installation import describe_files, digest, write_manifest
from .networks.export_graph import ExportGraph
from .recipes import Recipe
from .to_onnx import check_disk, write_onnx
from .verify import FLOAT32, Arrays, Distance, Limits, distance, random_inputs, run_module, within

Report = Callable[[str], None]  # is told one line of progress
_DTYPES = {"BFLOAT16": torch.bfloat16, "FLOAT16": torch.float16}
_SLACK = 2.0  # how much farther than torch in its type an engine may be: it sums in another order
_ROUNDED = "torch in the engine's type"
_AGAIN = "build it again, in a wider type if this stays"


@dataclass(frozen=True)
class Choices:
    """How to compare."""

    device: str = "cpu"  # where the torch module runs
    onnxruntime: bool = True  # lower the network once more and run it there too
    shapes: str = "min"  # of a plan's inputs: the min, opt or max of its profile


def compare(folder: Path, recipe: Recipe, choices: Choices, tell: Report) -> Manifest:
    """Compare the engine installed in `folder` and write what was found into its manifest.

    Args:
        folder: of the engine and its manifest.
        recipe: what it was made from.
        choices: how to compare.
        tell: is told one line for each comparison.

    Returns:
        The manifest, as written.

    Raises:
        InvalidRequestError: there is no such device, or it has no room for the module.
        EngineMismatchError: the engine can't be run on this machine.
        CheckpointError: it was made from other weights than the recipe's.
        VerificationError: an answer is too far from the reference; the manifest stays as it was.
    """
    if choices.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError(
            "torch finds no GPU here to run the module on; drop --device cuda and give the CPU time"
        )
    # Refuses at once what this machine can't run, and goes again: the module needs the room.
    manifest = open_engine(folder, recipe.network).manifest
    _free()
    if digest(recipe.weight_files) != manifest.checkpoint_sha256:
        raise CheckpointError(
            f"{folder} was made from other weights than {recipe.checkpoint}; name the checkpoint, --dit-path and --lora "
            "that it was built with, or build it again"
        )
    tell("running the torch module")
    others: dict[str, dict[str, Arrays]] = {}
    dtype = compute_dtype(manifest)
    with _room_said():
        module = recipe.module(recipe.weights()).to(choices.device)
        inputs = _inputs(recipe.graphs(module), manifest, choices.shapes)
        exact = _run_torch(recipe, module, inputs)
        if dtype != torch.float32:
            others[_ROUNDED] = _run_torch(recipe, module.to(dtype), inputs)
        del module
    # torch's FP8 finds its scales while it computes, which no graph here says
    lowerable = manifest.kind != "onnxruntime" and (manifest.kind, manifest.precision) != ("torch", "fp8")  # fmt: skip
    if choices.onnxruntime and lowerable:
        others["onnxruntime in float32"] = _run_onnxruntime(recipe, inputs, tell)
    _free()
    installed = open_engine(folder, recipe.network)
    found = {}
    for name, reference in exact.items():
        beside = {other: distance(reference, outputs[name]) for other, outputs in others.items()}
        limits = limits_beside(beside[_ROUNDED]) if _ROUNDED in beside else recipe.limits
        actual = distance(reference, installed.on_numpy(name)(inputs[name]))
        record = within(f"{recipe.network}/{name}", actual, limits, otherwise=_AGAIN)
        found[name] = replace(record, beside=dict(beside))
        _tell(name, found[name], tell)
    changed = replace(manifest, verification=found)
    write_manifest(folder, changed)
    return changed


@contextmanager
def _room_said() -> Iterator[None]:
    """Say what else can be done where the GPU is too small for torch."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidRequestError(
            f"the GPU has no room for the torch module, which is compared in float32 ({error}); drop --device cuda and "
            "give the CPU time, or compare smaller inputs with --shapes min"
        ) from error


def _free() -> None:
    """Give memory back that nobody uses any more, also what torch keeps of a GPU's for itself."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing without a GPU


def compute_dtype(manifest: Manifest) -> torch.dtype:
    """The floating type that an engine's graphs take and give."""
    graphs = manifest.graphs.values()
    texts = [text for g in graphs for text in (*g.inputs.values(), *g.outputs.values())]
    named = (text.split()[0] for text in texts)
    return next((_DTYPES[name] for name in named if name in _DTYPES), torch.float32)


def limits_beside(rounded: Distance) -> Limits:
    """How far an engine may be from float32, if torch in the engine's type is `rounded` from it."""
    return Limits(
        # 1 - cosine grows with the square of a small error
        min_cosine=min(FLOAT32.min_cosine, 1 - _SLACK**2 * (1 - rounded.cosine)),
        max_error=max(FLOAT32.max_error, _SLACK * rounded.max_error),
    )


def _tell(name: str, found: Verification, tell: Report) -> None:
    tell(
        f"{name}: engine cosine {found.cosine:.7f} (at least {found.min_cosine:.7f}), error {found.max_error:.1e}"
    )
    for other, (cosine, error) in found.beside.items():
        tell(f"{name}: {other} cosine {cosine:.7f}, error {error:.1e}")


def _inputs(graphs: Mapping[str, ExportGraph], manifest: Manifest, which: str) -> dict[str, Arrays]:
    found = {}
    for name, graph in manifest.graphs.items():
        shapes = {key: getattr(bounds, which) for key, bounds in graph.profile.items()}
        found[name] = random_inputs(graphs[name], shapes=shapes)
    return found


def _run_torch(
    recipe: Recipe, module: nn.Module, inputs: Mapping[str, Arrays]
) -> dict[str, Arrays]:
    graphs = recipe.graphs(module)
    return {name: run_module(graphs[name], of_graph) for name, of_graph in inputs.items()}


def _run_onnxruntime(
    recipe: Recipe, inputs: Mapping[str, Arrays], tell: Report
) -> dict[str, Arrays]:
    weights = recipe.weights()
    network, graphs = recipe.lowerable()
    answers = {}
    for name, of_graph in inputs.items():
        with tempfile.TemporaryDirectory(prefix="predict2-verify-") as folder:
            check_disk(Path(folder), network, 1)
            path = Path(folder) / f"{name}.onnx"
            tell(f"lowering {name} for ONNX Runtime")
            write_onnx(graphs[name], path, network, weights, tell)
            answers[name] = open_onnxruntime(path, describe_files(path), "cpu")(of_graph)
    return answers
