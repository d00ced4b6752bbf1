# SPDX-License-Identifier: Apache-2.0
"""Installed engines: read the manifest, check that it fits this machine, open the graphs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import MANIFEST_FILE, Manifest

from .bindings import FLAVOURS

# Callable like the module it replaces: names -> tensors in, names -> tensors out.
Engine = Callable[[Mapping[str, Any]], dict[str, Any]]


def _same(array: Any) -> Any:
    return array


@dataclass(frozen=True)
class Placement:
    """How numpy arrays get to where an engine computes, and its arrays back. As made, they stay what they are."""

    to_engine: Callable[[Any], Any] = _same
    to_numpy: Callable[[Any], Any] = _same  # of a narrower type, floats become float32


NUMPY = Placement()


@dataclass(frozen=True)
class InstalledEngine:
    """An engine's manifest and its graphs, ready to be called."""

    manifest: Manifest
    graphs: dict[str, Engine]  # from the engine's kind of arrays to the same kind
    placement: Placement = NUMPY

    def on_numpy(self, graph: str) -> Engine:
        """A graph as a function from numpy arrays to numpy arrays, wherever it computes."""
        run, placement = self.graphs[graph], self.placement

        def call(inputs: Mapping[str, Any]) -> dict[str, Any]:
            outputs = run({name: placement.to_engine(value) for name, value in inputs.items()})
            return {name: placement.to_numpy(value) for name, value in outputs.items()}

        return run if placement is NUMPY else call


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the engine installed in `folder`.

    Raises:
        EngineMismatchError: there is none, or it can't be read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise EngineMismatchError(f"no engine in {folder}: build one with `predict2-export build`")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineMismatchError(
            f"{path} can't be read ({error}); build the engine again with predict2-export"
        ) from error
    return Manifest.from_json(text)


def open_engine(folder: Path, network: str) -> InstalledEngine:
    """Open the engine of `network` installed in `folder`.

    Raises:
        EngineMismatchError: it is another network's, its kind isn't known here, its files don't match its manifest,
            or it doesn't fit this machine. The message says what to rebuild.
    """
    manifest = _read_installed(folder, network)
    return _opener(manifest)(folder, manifest)


def check_engine(folder: Path, network: str) -> Manifest:
    """The manifest of an engine that fits this machine as far as that can be told without opening it.

    Raises:
        EngineMismatchError: as `open_engine`, but for what only a file's content tells.
    """
    manifest = _read_installed(folder, network)
    _opener(manifest)
    if manifest.kind == "onnxruntime":
        from .onnxruntime import find_provider

        find_provider(folder, manifest.device)
    elif manifest.kind == "torch":
        from .torch_engine import find_device

        find_device(manifest)
    for flavour in FLAVOURS:
        if manifest.kind == flavour:
            from .tensorrt import find_gpu

            find_gpu(manifest, flavour)
    return manifest


def _read_installed(folder: Path, network: str) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.network != network:
        raise EngineMismatchError(
            f"{folder} holds the engine of {manifest.network}, not of {network}; build {network} again"
        )
    for graph in manifest.graphs.values():
        _check_size(folder / graph.file, graph.size_bytes, manifest)
        if graph.data_file:
            _check_size(folder / graph.data_file, graph.data_size_bytes, manifest)
    return manifest


def _opener(manifest: Manifest) -> Callable[[Path, Manifest], InstalledEngine]:
    if manifest.kind == "onnxruntime":
        return _open_onnxruntime
    try:
        if manifest.kind == "torch":
            from .torch_engine import open_torch

            return open_torch
        for flavour in FLAVOURS:
            if manifest.kind == flavour:
                from .tensorrt import open_tensorrt

                return partial(open_tensorrt, flavour=flavour)
    except ModuleNotFoundError as error:
        raise EngineMismatchError(
            f"{manifest.network} is an engine of {manifest.kind}, which computes on torch's tensors, and {error}; "
            "install torch for this machine's CUDA"
        ) from error
    raise EngineMismatchError(
        f"engine kind {manifest.kind!r} of {manifest.network} can't be run by this version; "
        f"it runs onnxruntime, {', '.join(FLAVOURS)}, torch. Build the engine again with predict2-export"
    )


def _open_onnxruntime(folder: Path, manifest: Manifest) -> InstalledEngine:
    from .onnxruntime import open_onnxruntime

    graphs = {
        name: open_onnxruntime(folder / graph.file, graph, manifest.device)
        for name, graph in manifest.graphs.items()
    }
    return InstalledEngine(manifest, graphs)


def _check_size(path: Path, expected: int, manifest: Manifest) -> None:
    actual = path.stat().st_size if path.is_file() else None
    if actual != expected:
        found = "is missing" if actual is None else f"has {actual} bytes instead of {expected}"
        raise EngineMismatchError(
            f"{path} {found}; build {manifest.network} again: {manifest.rebuild_command}"
        )
