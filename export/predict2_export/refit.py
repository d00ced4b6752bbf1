# SPDX-License-Identifier: Apache-2.0
"""Other weights in a plan that is there: what took minutes to tune stays, and the numbers change."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from predict2_runtime.engines import read_manifest
from predict2_runtime.engines.bindings import FLAVOURS, Flavour, bindings
from predict2_runtime.engines.plugins import load_plugins
from predict2_runtime.engines.tensorrt import read_plan
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.errors import EngineBuildError, InvalidRequestError
from predict2_spec.manifest import Graph, Manifest

from .comparison import compute_dtype
from .installation import digest, replacing, write_manifest
from .recipes import Recipe
from .to_onnx import check_disk, write_onnx

if TYPE_CHECKING:
    import tensorrt as trt

Report = Callable[[str], None]  # is told one line of progress
_REFITTED = "refitted"  # in the place of the digest of what built a plan: no build makes this one
_NAMED = 3  # of weights that are missing


def check_refittable(repository: Path, recipe: Recipe) -> Manifest:
    """The manifest of an engine that can take a recipe's weights.

    Raises:
        EngineMismatchError: there is no engine.
        InvalidRequestError: it takes none, or none but those that it was built from.
    """
    manifest = read_manifest(repository / recipe.network / VERSION_FOLDER)
    if manifest.kind not in FLAVOURS or manifest.weights == "fixed":
        raise InvalidRequestError(
            f"{recipe.network} in {repository} is an engine of {manifest.kind} with fixed weights; only plans that "
            "`predict2-export engine` made with --refit or --strip-weights take others"
        )
    own = digest(recipe.weight_files) == manifest.checkpoint_sha256
    if manifest.weights == "stripped" and not own:
        raise InvalidRequestError(
            f"{recipe.network} in {repository} was stripped and takes the very weights that it was built from; name those, "
            "or build it with --strip-weights and --refit to give it others"
        )
    return manifest


def refit(repository: Path, recipe: Recipe, tell: Report) -> Manifest:
    """Put a recipe's weights into the plans of its stage. Needs their GPU; the old plans stay until all are done.

    Args:
        repository: where the stage is installed.
        recipe: of the same network, with the weights.
        tell: is told one line for each step.

    Returns:
        The new manifest: compared with nothing yet.

    Raises:
        EngineMismatchError: the plans don't fit this machine.
        InvalidRequestError: they take no weights, or not these.
        EngineBuildError: a weight isn't found; with TensorRT's own words.
    """
    manifest = check_refittable(repository, recipe)
    checkpoint_sha256 = digest(recipe.weight_files)
    weights = recipe.weights()
    network, graphs = recipe.lowerable(compute_dtype(manifest))
    with replacing(repository / recipe.network) as folder:
        shutil.copytree(repository / recipe.network, folder, dirs_exist_ok=True)
        engine = folder / VERSION_FOLDER
        check_disk(engine, network, len(graphs) + 1)
        made: dict[str, Graph] = {}
        for name, graph in manifest.graphs.items():
            with tempfile.TemporaryDirectory(dir=engine) as place:
                source = Path(place) / f"{name}.onnx"
                tell(f"lowering {name} to ONNX")
                write_onnx(graphs[name], source, network, weights, tell)
                tell(f"refitting {name}")
                plan = refitted(engine / graph.file, source, manifest)
            (engine / graph.file).write_bytes(plan)
            sha256 = digest([engine / graph.file])
            made[name] = replace(graph, sha256=sha256, size_bytes=len(plan))
        changed = replace(
            manifest,
            graphs=made,
            checkpoint_sha256=checkpoint_sha256,
            weights="fixed" if manifest.weights == "stripped" else "refittable",
            recipe=_REFITTED,
            verification={},
        )
        write_manifest(engine, changed)
    return changed


def refitted(plan: Path, source: Path, manifest: Manifest) -> memoryview:
    """The plan with the weights of an ONNX file.

    Raises:
        EngineMismatchError: the plan can't be opened here.
        EngineBuildError: the file lacks a weight or has one of another shape.
    """
    (flavour,) = (f for f in FLAVOURS if f == manifest.kind)
    module = bindings(flavour)
    if not manifest.plugins_inside:
        load_plugins(module, manifest.plugins, manifest.rebuild_command)
    return _refit(read_plan(plan, manifest, flavour), source, flavour)


def _refit(engine: "trt.ICudaEngine", source: Path, flavour: Flavour) -> memoryview:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = bindings(flavour)
    log = tensorrt_log(flavour)
    log.errors.clear()
    refitter = trt.Refitter(engine, log.as_logger())
    parser = trt.OnnxParserRefitter(refitter, log.as_logger())
    if not parser.refit_from_file(str(source)):
        reasons = [parser.get_error(i).desc() for i in range(parser.num_errors)] or log.errors
        raise EngineBuildError(
            f"{flavour} can't take the weights of {source.name}: {'; '.join(reasons)}"
        )
    missing = refitter.get_missing_weights()
    if missing or not refitter.refit_cuda_engine():
        lacks = (
            f"{len(missing)} weights are missing: {', '.join(missing[:_NAMED])}" if missing else ""
        )
        raise EngineBuildError(
            f"{flavour} can't refit the plan from {source.name}: {'; '.join([lacks, *log.errors]).strip('; ')}"
        )
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    keep = getattr(trt.SerializationFlag, "INCLUDE_REFIT", None)  # TensorRT 10.14 and later
    if keep is not None:
        config.set_flag(keep)
    return memoryview(engine.serialize_with_config(config))
