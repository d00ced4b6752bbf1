# SPDX-License-Identifier: Apache-2.0
"""From checkpoints to a served repository of TensorRT's plans: lower, build, install. Resumable, as `build` is.

A plan runs on its GPU alone, so it is verified there and not here: until then its manifest says nothing of how well it
agrees with torch.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from predict2_kernels import plugin_path
from predict2_runtime.engines import read_manifest
from predict2_runtime.engines.bindings import bindings, major
from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import Graph
from predict2_spec.presets import Preset
from predict2_spec.tensors import GUARDRAIL_VIDEO

from .build_options import BuildOptions
from .build_progress import watched
from .checkpoint.wording import amount
from .installation import (
    EngineKind,
    Report,
    build_engine,
    digest,
    install,
    write_manifest,
)
from .profiles import Extent, free_dims, input_dims, profile
from .recipes import Recipe, ScriptedRecipe
from .to_engine import build_plan
from .to_onnx import check_disk, describe, write_onnx

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_SOFTWARE = ("cosmos-predict2-triton", "torch", "onnx", "onnxscript", "transformers")
_CODE = ("build_options.py", "profiles.py", "to_engine.py")  # that shapes plans besides what lowers


@dataclass(frozen=True)
class PlanChoices:
    """How a repository's plans are built."""

    options: BuildOptions
    dtype: str = "bfloat16"  # of all networks but those that are float32 whatever one wants
    extent: Extent = "any"
    cuda_graphs: int = 0  # shapes of each graph whose launches are recorded
    timing_cache: Path | None = None
    keep_onnx: Path | None = None  # where to keep the ONNX files


def build_plans(  # the last two are the owner's choices, with defaults
    preset: Preset,
    found: Sequence[Recipe],
    templates: Path,
    output: Path,
    report: Report,
    choices: PlanChoices,
    *,
    only: str = "",
    guard_frames: bool = True,
) -> None:
    """Make `output` a repository that serves `preset` with plans.

    Args:
        preset: what to serve.
        found: a recipe for each of its stages.
        templates: the model_repository folder: config.pbtxt and model.py of every model.
        output: the repository; made when it's missing.
        report: is told what is going on.
        choices: how to build the plans.
        only: build this stage's and leave the rest as it is.
        guard_frames: False leaves out the stage that looks at frames, also where it was built before.

    Raises:
        CheckpointError: a file is missing, damaged, or holds other weights.
        EngineBuildError: TensorRT can't make a plan of a network.
    """
    install(
        preset,
        [_in_plan(recipe, choices) for recipe in found],
        templates,
        output,
        report,
        partial(_build_stage, preset, templates, output, choices),
        only=only,
        guard_frames=guard_frames,
    )


def _in_plan(recipe: Recipe, choices: PlanChoices) -> Recipe:
    """The recipe with the precision and the GPUs of its plans; FP8 says so by itself."""
    exact = recipe.precision == PRECISIONS["float32"]
    precision = PRECISIONS[_dtype(recipe, choices)] if exact else recipe.precision
    return replace(recipe, precision=precision, device=choices.options.device)


def _dtype(recipe: Recipe, choices: PlanChoices) -> str:
    # What looks at frames decides, and was made for float32; a program can't be anything else.
    always = recipe.network == GUARDRAIL_VIDEO.name or isinstance(recipe, ScriptedRecipe)
    return "float32" if always else choices.dtype


def _build_stage(
    preset: Preset, templates: Path, output: Path, choices: PlanChoices, recipe: Recipe, tell: Report
) -> None:  # fmt: skip
    name, options = recipe.network, choices.options
    module = bindings(options.flavour)
    library = plugin_path(major(module)) if options.plugins != "none" else None
    dtype = _dtype(recipe, choices)

    def make(engine: Path, tell: Report) -> dict[str, Any]:
        graphs, plugins = _make_plans(preset, recipe, engine, choices, tell)
        return {
            "graphs": graphs,
            "plugins": plugins,
            "plugins_inside": bool(plugins) and options.plugins == "serialize",
            "weights": options.weights,
            "version_compatible": options.version_compatible,
            "cuda_graphs": choices.cuda_graphs,
        }

    kind = EngineKind(
        options.flavour,
        _SOFTWARE,
        partial(_is_current, preset),
        make,
        versions={options.flavour: module.__version__},
        chosen=f"{options} {dtype} {choices.extent} {digest([library]) if library else ''}",
        code=_CODE,
    )
    if build_engine(preset, recipe, templates, output, kind, tell):
        return
    there = output / name / VERSION_FOLDER
    manifest = read_manifest(there)
    if manifest.cuda_graphs != choices.cuda_graphs:  # how many shapes is no matter of the plan
        write_manifest(there, replace(manifest, cuda_graphs=choices.cuda_graphs))
    _keep_missing_onnx(recipe, list(manifest.graphs), choices, tell)


def _make_plans(
    preset: Preset, recipe: Recipe, engine: Path, choices: PlanChoices, tell: Report
) -> tuple[dict[str, Graph], dict[str, str]]:
    """Lower each graph and build its plan in `engine`; also the plugins that they need."""
    weights = recipe.weights()
    network, graphs = recipe.lowerable(getattr(torch, _dtype(recipe, choices)))
    check_disk(engine, network, len(graphs) + 1)  # each plan, and one ONNX file at a time
    made: dict[str, Graph] = {}
    plugins: dict[str, str] = {}
    for name in graphs:
        with _onnx_folder(engine, choices.keep_onnx) as folder:
            source = folder / _onnx_name(recipe, name)
            tell(f"lowering {name} to ONNX")
            write_onnx(graphs[name], source, network, weights, tell)
            source = _kept(source, choices.keep_onnx)
            made[name], used = _make_plan(preset, recipe, name, source, engine, choices, tell)
            plugins |= used
    return made, plugins


def _make_plan(
    preset: Preset,
    recipe: Recipe,
    name: str,
    source: Path,
    engine: Path,
    choices: PlanChoices,
    tell: Report,
) -> tuple[Graph, dict[str, str]]:
    """Build the plan of one graph from its ONNX file; also the plugins that it needs."""
    target = engine / f"{name}.plan"
    free = free_dims(preset, recipe.network, name, choices.extent)
    shapes = profile(input_dims(source), free, source.name)
    tell(f"building {name} for {choices.options.device}")
    with watched(f"{recipe.network}/{name}", tell) as phases:
        plugins = build_plan(
            source,
            target,
            shapes,
            choices.options,
            phases,
            tf32=recipe.precision != PRECISIONS["float32"],  # which promises all bits
            timing_cache=choices.timing_cache,
        )
    size = target.stat().st_size
    tell(f"{name} is built, {amount(size)}")
    inputs, outputs = describe(source)
    graph = Graph(
        file=target.name,
        sha256=digest([target]),
        size_bytes=size,
        inputs=inputs,
        outputs=outputs,
        profile=shapes,
    )
    return graph, plugins


def _onnx_name(recipe: Recipe, graph: str) -> str:
    return f"{recipe.network}.{graph}.onnx"


def _keep_missing_onnx(
    recipe: Recipe, names: Sequence[str], choices: PlanChoices, tell: Report
) -> None:
    """Lower what shall be kept and isn't there, for plans that needn't be built."""
    keep = choices.keep_onnx
    if not keep or all((keep / _onnx_name(recipe, name)).is_file() for name in names):
        return
    weights = recipe.weights()
    network, graphs = recipe.lowerable(getattr(torch, _dtype(recipe, choices)))
    for name in names:
        with _onnx_folder(keep, keep) as folder:
            tell(f"lowering {name} to ONNX, to keep it")
            source = folder / _onnx_name(recipe, name)
            write_onnx(graphs[name], source, network, weights, tell)
            _kept(source, keep)


@contextmanager
def _onnx_folder(engine: Path, keep: Path | None) -> Iterator[Path]:
    """Where to lower a graph to; vanishes with what is in it. On the disk where files are to be kept."""
    folder = (
        keep or engine
    ) / ".onnx.part"  # of this name, so that a killed build's goes with the next
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kept(source: Path, keep: Path | None) -> Path:
    """An ONNX file that is whole, where it is to be kept, and its weights beside it."""
    if not keep:
        return source
    for file in sorted(source.parent.iterdir(), reverse=True):  # the graph last
        file.rename(keep / file.name)
    return keep / source.name


def _is_current(preset: Preset, engine: Path, network: str, key: str) -> bool:
    """Whether these very plans are there, verified or not; only their GPU can open them.

    Two presets may share a network and tune it for other sizes.
    """
    try:
        manifest = read_manifest(engine)
    except EngineMismatchError:
        return False
    files = ((engine / graph.file, graph.size_bytes) for graph in manifest.graphs.values())
    found = (manifest.preset, manifest.network, manifest.recipe)
    return found == (preset.name, network, key) and all(
        path.is_file() and path.stat().st_size == size for path, size in files
    )
