# SPDX-License-Identifier: Apache-2.0
"""From checkpoints to a served repository: lower, verify, install. Resumable; nothing half-written is served."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from predict2_runtime.engines import open_engine
from predict2_spec.manifest import Graph
from predict2_spec.presets import Preset, Task

from .current import is_current
from .fp8.recipe import Fp8Choice, fp8_recipes
from .installation import (
    EngineKind,
    Report,
    build_engine,
    describe_files,
    install,
    write_manifest,
)
from .layouts import located
from .recipes import PostTrained, Recipe, recipes
from .to_onnx import check_disk, write_onnx
from .torch_build import TorchChoices, build_torch_stage, in_torch
from .verify import Answer, answer, verify

KIND = "onnxruntime"
_SOFTWARE = ("cosmos-predict2-triton", "torch", "onnx", "onnxscript", "onnxruntime", "transformers")


def build(  # noqa: PLR0913  # the last seven are the owner's choices, with defaults
    preset: Preset,
    checkpoints: Path,
    templates: Path,
    output: Path,
    report: Report,
    *,
    only: str = "",
    device: str = "cpu",
    post_trained: Mapping[Task, PostTrained] | None = None,
    trust_torchscript: bool = False,
    guard_frames: bool = True,
    fp8: Fp8Choice | None = None,
    torch_choices: TorchChoices | None = None,
) -> None:
    """Make `output` a repository that serves `preset`.

    Engines already there from the same checkpoint and the same software are kept, so an interrupted build
    goes on where it stopped.

    Args:
        preset: what to serve.
        checkpoints: folder with the files the preset names.
        templates: the model_repository folder: config.pbtxt and model.py of every model.
        output: the repository; made when it's missing.
        report: is told what is going on.
        only: build this stage's engine and leave the rest as it is.
        device: where the engines shall run, cpu or cuda.
        post_trained: denoisers' weights other than the preset's.
        trust_torchscript: run the programs of checkpoints that are programs.
        guard_frames: False leaves out the stage that looks at frames, also where it was built before.
        fp8: how to make the denoisers of the level fp8; None is the level exact.
        torch_choices: how to make engines of torch of the stages that have one; None makes all for ONNX Runtime.

    Raises:
        CheckpointError: a file is missing, damaged, or holds other weights.
        VerificationError: an engine's answers are not the torch module's; it isn't installed.
    """
    there = located(preset, checkpoints)
    found = recipes(
        there,
        checkpoints,
        device,
        post_trained,
        trust_torchscript=trust_torchscript,
    )
    if fp8:
        found = fp8_recipes(there, found, fp8, output, report, only=only)
    install(
        preset,
        found,
        templates,
        output,
        report,
        partial(_build_either, preset, templates, output, torch_choices),
        only=only,
        guard_frames=guard_frames,
    )


def _build_either(
    preset: Preset, templates: Path, output: Path, choices: TorchChoices | None, recipe: Recipe, tell: Report
) -> None:  # fmt: skip
    if choices and in_torch(recipe):
        build_torch_stage(preset, templates, output, choices, recipe, tell)
    else:
        _build_stage(preset, templates, output, recipe, tell)


def _build_stage(
    preset: Preset, templates: Path, output: Path, recipe: Recipe, tell: Report
) -> None:
    kind = EngineKind(
        KIND,
        _SOFTWARE,
        is_current,
        make=lambda engine, tell: {"graphs": _lower(recipe, engine, tell)},
        verify=partial(_verify, recipe),
    )
    build_engine(preset, recipe, templates, output, kind, tell)


def _lower(recipe: Recipe, engine: Path, tell: Report) -> dict[str, Graph]:
    weights = recipe.weights()
    network, graphs = recipe.lowerable()
    check_disk(engine, network, len(graphs))
    written = {}
    for name, graph in graphs.items():
        tell(f"lowering {name} to ONNX")
        path = engine / f"{name}.onnx"
        write_onnx(graph, path, network, weights, tell)
        written[name] = describe_files(path)
    return written


def _verify(recipe: Recipe, engine: Path, tell: Report) -> None:
    tell("running the torch module")
    answers = _answers(recipe)
    opened = open_engine(engine, recipe.network)
    results = {}
    for name, expected in answers.items():
        result = verify(f"{recipe.network}/{name}", expected, opened.graphs[name], recipe.limits)
        tell(f"{name} agrees with torch: cosine {result.cosine:.7f}, error {result.max_error:.1e}")
        results[name] = result
    write_manifest(engine, replace(opened.manifest, verification=results))


def _answers(recipe: Recipe) -> dict[str, Answer]:
    """What the torch module answers; it is gone from memory before the engine comes."""
    graphs = recipe.graphs(recipe.module(recipe.weights()))
    return {name: answer(graph) for name, graph in graphs.items()}
