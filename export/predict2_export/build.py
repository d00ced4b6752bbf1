# SPDX-License-Identifier: Apache-2.0
"""From checkpoints to a served repository: lower, verify, install. Resumable; nothing half-written is served."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from predict2_runtime.engines import open_engine, read_manifest
from predict2_runtime.repository import VERSION_FOLDER, write_preset
from predict2_runtime.stages.text_encoder import TOKENIZER_FILE
from predict2_spec import tensors
from predict2_spec.errors import CheckpointError, EngineMismatchError
from predict2_spec.manifest import MANIFEST_FILE, Graph, Manifest
from predict2_spec.presets import Preset, Task

from .layouts import located
from .recipes import PostTrained, Recipe, recipes
from .to_onnx import check_disk, describe, write_onnx
from .verify import Answer, answer, verify

KIND = "onnxruntime"
_SOFTWARE = ("cosmos-predict2-triton", "torch", "onnx", "onnxscript", "onnxruntime", "transformers")
Report = Callable[[str], None]  # is told one line of progress


def build(  # noqa: PLR0913  # the last five are the owner's choices, with defaults
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

    Raises:
        CheckpointError: a file is missing, damaged, or holds other weights.
        VerificationError: an engine's answers are not the torch module's; it isn't installed.
    """
    found = recipes(
        located(preset, checkpoints),
        checkpoints,
        device,
        post_trained,
        trust_torchscript=trust_torchscript,
    )
    left_out = [] if guard_frames else [tensors.GUARDRAIL_VIDEO.name]
    todo = [r for r in found if only in ("", r.network) and r.network not in left_out]
    for recipe in todo:
        recipe.check_lowerable()
    _check_files(preset, todo)
    output.mkdir(parents=True, exist_ok=True)
    _build_stages(preset, todo, templates, output, report)
    for name in left_out:
        shutil.rmtree(output / name, ignore_errors=True)
        report(f"{name} is left out: a server of this repository doesn't look at frames")
    for name in tensors.engineless(preset):
        with _replacing(output / name) as folder:
            _copy_model(templates / name, folder)
    write_preset(output, preset)


def _build_stages(
    preset: Preset, todo: list[Recipe], templates: Path, output: Path, report: Report
) -> None:
    for number, recipe in enumerate(todo, start=1):

        def tell(line: str, place: str = f"[{number}/{len(todo)}] {recipe.network}") -> None:
            report(f"{place}: {line}")

        _build_stage(preset, recipe, templates, output, tell)


def _check_files(preset: Preset, todo: list[Recipe]) -> None:
    needed = {path for recipe in todo for path in recipe.files}
    missing = sorted(str(path) for path in needed if not path.exists())
    if missing:
        raise CheckpointError(
            f"preset {preset.name} needs {', '.join(missing)}; "
            f"predict2-export fetch --preset {preset.name}{_guard_advice(todo)} gets what is published, "
            "docs/export.md says more"
        )


def _guard_advice(todo: list[Recipe]) -> str:
    """What a fetch needs for the frame guard's files, which it brings only when asked; "" if they are there."""
    guard = [path for r in todo if r.network == tensors.GUARDRAIL_VIDEO.name for path in r.files]
    if all(path.exists() for path in guard):
        return ""
    return (
        " --with guardrails, after you have accepted the licences on the pages that it names "
        "(or build with --skip-guardrail-video for a server that doesn't look at frames),"
    )


def _build_stage(
    preset: Preset, recipe: Recipe, templates: Path, output: Path, tell: Report
) -> None:
    name = recipe.network
    tell(f"reading {recipe.checkpoint}")
    checkpoint_sha256 = digest(recipe.weight_files)
    key = _recipe_key(recipe, checkpoint_sha256)
    if _is_current(output / name / VERSION_FOLDER, name, key):
        _copy_model(templates / name, output / name)
        tell("already built from this checkpoint, kept")
        return
    with _replacing(output / name) as folder:
        _copy_model(templates / name, folder)
        engine = folder / VERSION_FOLDER
        if recipe.tokenizer:
            shutil.copyfile(recipe.tokenizer, engine / TOKENIZER_FILE)
        manifest = Manifest(
            network=name,
            preset=preset.name,
            kind=KIND,
            precision=recipe.precision,
            device=recipe.device,
            checkpoint_sha256=checkpoint_sha256,
            recipe=key,
            versions={package: version(package) for package in _SOFTWARE},
            graphs=_lower(recipe, engine, tell),
        )
        _write(engine, manifest)
        _write(engine, _verified(manifest, recipe, engine, tell))


def _copy_model(template: Path, folder: Path) -> None:
    shutil.copytree(
        template, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )


def _lower(recipe: Recipe, engine: Path, tell: Report) -> dict[str, Graph]:
    weights = recipe.weights()
    network, graphs = recipe.lowerable()
    check_disk(engine, network, len(graphs))
    written = {}
    for name, graph in graphs.items():
        tell(f"lowering {name} to ONNX")
        path = engine / f"{name}.onnx"
        write_onnx(graph, path, network, weights, tell)
        written[name] = _describe_files(path)
    return written


def _describe_files(path: Path) -> Graph:
    inputs, outputs = describe(path)
    data = path.with_name(path.name + ".data")
    return Graph(
        file=path.name,
        sha256=digest([path]),
        size_bytes=path.stat().st_size,
        inputs=inputs,
        outputs=outputs,
        data_file=data.name,
        data_sha256=digest([data]),
        data_size_bytes=data.stat().st_size,
    )


def _verified(manifest: Manifest, recipe: Recipe, engine: Path, tell: Report) -> Manifest:
    tell("running the torch module")
    answers = _answers(recipe)
    opened = open_engine(engine, recipe.network)
    results = {}
    for name, expected in answers.items():
        result = verify(f"{recipe.network}/{name}", expected, opened.graphs[name], recipe.limits)
        tell(f"{name} agrees with torch: cosine {result.cosine:.7f}, error {result.max_error:.1e}")
        results[name] = result
    return replace(manifest, verification=results)


def _answers(recipe: Recipe) -> dict[str, Answer]:
    """What the torch module answers; it is gone from memory before the engine comes."""
    graphs = recipe.graphs(recipe.module(recipe.weights()))
    return {name: answer(graph) for name, graph in graphs.items()}


def _write(engine: Path, manifest: Manifest) -> None:
    (engine / MANIFEST_FILE).write_text(manifest.to_json())


def _recipe_key(recipe: Recipe, checkpoint_sha256: str) -> str:
    """Digest of everything that shapes the engine: files, numbers, the code that lowers them, the tools."""
    chosen = f"{recipe.post_trained.ema} {recipe.post_trained.alpha}"
    sha = hashlib.sha256(
        f"{recipe.network} {recipe.spec} {recipe.precision} {recipe.device} {chosen}".encode()
    )
    here = Path(__file__).parent
    code = [here / name for name in ("checkpoint", "networks", "recipes.py", "to_onnx.py")]
    tokenizer = [recipe.tokenizer] if recipe.tokenizer else []
    sha.update((checkpoint_sha256 + digest([*tokenizer, *code])).encode())
    sha.update(str([version(package) for package in _SOFTWARE]).encode())
    return sha.hexdigest()


def _is_current(engine: Path, network: str, key: str) -> bool:
    try:
        manifest = read_manifest(engine)
        if manifest.recipe != key or manifest.verification.keys() != manifest.graphs.keys():
            return False
        open_engine(engine, network)
    except EngineMismatchError:
        return False
    return True


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block succeeds and vanishes when it fails."""
    # Beside the repository, not in it: Triton takes every folder of a repository for a model.
    staging = folder.parent.with_name(f".{folder.parent.name}.{folder.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def digest(paths: list[Path]) -> str:
    """SHA-256 over the contents of files, and of folders' files in the order of their names."""
    sha = hashlib.sha256()
    for path in paths:
        for file in _files(path):
            with file.open("rb") as stream:
                while block := stream.read(2**24):
                    sha.update(block)
    return sha.hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix != ".pyc")
