# SPDX-License-Identifier: Apache-2.0
"""Putting engines into a repository that is served: whole stages, current ones kept, nothing half-written."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from predict2_runtime.repository import VERSION_FOLDER, read_preset, write_preset
from predict2_spec import tensors
from predict2_spec.errors import (
    CheckpointError,
    EngineMismatchError,
    InvalidRequestError,
    Predict2Error,
)
from predict2_spec.manifest import MANIFEST_FILE, Graph, Manifest
from predict2_spec.presets import Preset

from .recipes import Recipe
from .to_onnx import describe
from .toy import whole_file

Report = Callable[[str], None]  # is told one line of progress
_LOWERING = ("checkpoint", "networks", "recipes.py", "to_onnx.py")  # code that shapes every engine


def install(
    preset: Preset,
    found: Sequence[Recipe],
    templates: Path,
    output: Path,
    report: Report,
    build_stage: Callable[[Recipe, Report], None],
    *,
    only: str = "",
    guard_frames: bool = True,
) -> None:
    """Make `output` a repository that serves `preset`.

    Args:
        preset: what to serve.
        found: a recipe for each of its stages.
        templates: the model_repository folder: config.pbtxt and model.py of every model.
        output: the repository; made when it's missing.
        report: is told what is going on.
        build_stage: installs a recipe's engine in `output`, and tells how far it is.
        only: build this stage's engine and leave the rest as it is.
        guard_frames: False leaves out the stage that looks at frames, also where it was built before.

    Raises:
        CheckpointError: a file that a recipe needs is missing.
        InvalidRequestError: `only` is no stage of the preset, a network can't be lowered, or `output` holds another
            preset.
        Predict2Error: something else builds into `output` now.
    """
    names = [recipe.network for recipe in found]
    if only not in ("", *names):
        raise InvalidRequestError(f"preset {preset.name} has no {only}; it has {', '.join(names)}")
    left_out = [] if guard_frames else [tensors.GUARDRAIL_VIDEO.name]
    todo = [r for r in found if only in ("", r.network) and r.network not in left_out]
    for recipe in todo:
        recipe.check_lowerable()
    check_files(preset, todo)
    check_output(output, preset)
    with _alone_in(output):
        for number, recipe in enumerate(todo, start=1):

            def tell(line: str, place: str = f"[{number}/{len(todo)}] {recipe.network}") -> None:
                report(f"{place}: {line}")

            build_stage(recipe, tell)
        for name in left_out:
            shutil.rmtree(output / name, ignore_errors=True)
            report(f"{name} is left out: a server of this repository doesn't look at frames")
        for name in tensors.engineless(preset):
            with replacing(output / name) as folder:
                copy_model(templates / name, folder)
        write_preset(output, preset)


def check_output(output: Path, preset: Preset) -> None:
    """Refuse to mix presets: what one left behind wouldn't fit what the other serves.

    Raises:
        InvalidRequestError: the repository holds another.
    """
    try:
        there = read_preset(output).name
    except (EngineMismatchError, InvalidRequestError):
        return  # nothing is there yet, or nothing that can be told
    if there != preset.name:
        raise InvalidRequestError(
            f"{output} holds preset {there} and a repository serves one; choose another --output for {preset.name}, or "
            "delete that folder"
        )


@contextmanager
def _alone_in(output: Path) -> Iterator[None]:
    """Keep other builds out of a repository, which is made when it's missing.

    Raises:
        Predict2Error: another is in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    handle = os.open(output, os.O_RDONLY)
    try:
        with suppress(OSError):  # of file systems that know no such locks
            _lock(handle, output)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, output: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however it ends
    except BlockingIOError as error:
        raise Predict2Error(
            f"something else builds into {output} now; wait until it is done or choose another --output"
        ) from error


def check_files(preset: Preset, todo: Iterable[Recipe]) -> None:
    """Refuse to start what lacks a file.

    Raises:
        CheckpointError: all missing files, and how to get them.
    """
    todo = list(todo)
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


def copy_model(template: Path, folder: Path) -> None:
    """Copy a model's config.pbtxt and model.py over `folder`."""
    shutil.copytree(
        template, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
    )


def describe_files(path: Path) -> Graph:
    """What the manifest says of an ONNX file and the file of its weights."""
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


def write_manifest(engine: Path, manifest: Manifest) -> None:
    """Write `manifest` beside the engine's files; one that is there stays until the new one is whole."""
    with whole_file(engine / MANIFEST_FILE) as part:
        part.write_text(manifest.to_json(), encoding="utf-8")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of installed packages."""
    return {package: version(package) for package in packages}


def recipe_key(
    recipe: Recipe,
    checkpoint_sha256: str,
    software: dict[str, str],
    chosen: str = "",
    code: Sequence[str] = (),
) -> str:
    """Digest of everything that shapes an engine: files, numbers, the code that lowers them, the tools.

    Args:
        recipe: the engine's.
        checkpoint_sha256: of its weights.
        software: packages that make it, and their versions.
        chosen: how else it is built.
        code: modules of this package that shape it besides those that lower every network.
    """
    sha = hashlib.sha256(
        f"{recipe.network} {recipe.spec} {recipe.precision} {recipe.device} {recipe.choices}{chosen}".encode()
    )
    here = Path(__file__).parent
    files = [here / name for name in (*_LOWERING, *code)]
    tokenizer = [recipe.tokenizer] if recipe.tokenizer else []
    sha.update((checkpoint_sha256 + digest([*tokenizer, *files])).encode())
    sha.update(str(list(software.values())).encode())
    return sha.hexdigest()


@dataclass(frozen=True)
class EngineKind:
    """How engines of one kind are made, and told from others."""

    name: str  # in the manifest
    software: tuple[str, ...]  # packages that make it
    is_current: Callable[
        [Path, str, str], bool
    ]  # of a folder, a network and the digest of what shapes it
    # Writes an engine's files into a folder; returns what its manifest says besides.
    make: Callable[[Path, Report], Mapping[str, Any]]
    verify: Callable[[Path, Report], None] = lambda engine, tell: (
        None
    )  # and notes it in the manifest
    versions: Mapping[str, str] = field(default_factory=dict)  # of what isn't a package's own
    chosen: str = ""  # how else it is made
    code: tuple[str, ...] = ()  # modules of this package that shape it besides those that lower


def build_engine(
    preset: Preset, recipe: Recipe, templates: Path, output: Path, kind: EngineKind, tell: Report
) -> bool:
    """Install a recipe's engine in `output`, unless it is there; says whether it was built.

    Raises:
        CheckpointError: a file is damaged, holds other weights, or changed meanwhile.
    """
    name = recipe.network
    tell(f"reading {recipe.checkpoint}")
    before = stamps(recipe.files)
    checkpoint_sha256 = digest(recipe.weight_files)
    software = versions(kind.software) | dict(kind.versions)
    key = recipe_key(recipe, checkpoint_sha256, software, kind.chosen, kind.code)
    if kind.is_current(output / name / VERSION_FOLDER, name, key):
        copy_model(templates / name, output / name)
        tell("already built from this checkpoint, kept")
        return False
    with replacing(output / name) as folder:
        copy_model(templates / name, folder)
        engine = folder / VERSION_FOLDER
        recipe.write_beside(engine)
        manifest = Manifest(
            network=name,
            preset=preset.name,
            kind=kind.name,
            precision=recipe.precision,
            device=recipe.device,
            checkpoint_sha256=checkpoint_sha256,
            recipe=key,
            versions=software,
            **kind.make(engine, tell),
        )
        write_manifest(engine, manifest)
        kind.verify(engine, tell)
        check_unchanged(before)
    return True


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder that takes the place of `folder` when the block succeeds and vanishes when it fails."""
    staging = _staging(folder)
    _remove(staging)
    staging.mkdir()
    try:
        yield staging
        _swap(staging, folder)
    finally:
        _remove(staging)


def _staging(folder: Path) -> Path:
    """Where to make what takes the place of `folder`: beside the repository, as Triton takes every folder in it for a model.

    In the repository where nothing beside it can be renamed into it, as when it is a disk of its own.
    """
    repository = folder.parent.resolve()
    beside = repository.parent / f".{repository.name}.{folder.name}.part"
    inside = repository / f".{folder.name}.part"
    probe = beside.with_suffix(".probe")
    try:
        probe.touch()
        probe.rename(inside.with_suffix(".probe"))
    except OSError:
        return inside
    finally:
        for file in (probe, inside.with_suffix(".probe")):
            with suppress(OSError):
                file.unlink(missing_ok=True)
    return beside


def _swap(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`, which stays where it is if that fails."""
    old = new.with_suffix(".old")
    _remove(old)
    try:
        if os.path.lexists(folder):
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        if os.path.lexists(old) and not os.path.lexists(folder):
            old.rename(folder)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


Stamps = Mapping[Path, tuple[int, int, int]]  # of files: when written, how large, which


def stamps(paths: Iterable[Path]) -> Stamps:
    """What shows later whether files, and those in folders, are the same still; to be had before they are read."""
    found = {}
    for file in (file for path in paths for file in _files(path)):
        status = file.stat()
        found[file] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def check_unchanged(before: Stamps) -> None:
    """Refuse what was made from files while somebody wrote them: no digest says what it holds.

    Raises:
        CheckpointError: one is another now, or gone.
    """
    for path, stamp in before.items():
        if not path.is_file() or stamps([path])[path] != stamp:
            raise CheckpointError(
                f"{path} changed while it was read, so nothing was made of it; run this again when the file is complete"
            )


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
