# SPDX-License-Identifier: Apache-2.0
"""Installed engines: read the manifest, check that it fits this machine, open the graphs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import MANIFEST_FILE, Graph, Manifest

# Callable like the module it replaces: names -> tensors in, names -> tensors out.
Engine = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class InstalledEngine:
    """An engine's manifest and its graphs, ready to be called."""

    manifest: Manifest
    graphs: dict[str, Engine]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the engine installed in `folder`.

    Raises:
        EngineMismatchError: there is none, or it can't be read.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise EngineMismatchError(f"no engine in {folder}: build one with `predict2-export build`")
    return Manifest.from_json(path.read_text())


def open_engine(folder: Path, network: str) -> InstalledEngine:
    """Open the engine of `network` installed in `folder`.

    Raises:
        EngineMismatchError: it is another network's, its kind isn't known here, or its files don't match its
            manifest. The message says what to rebuild.
    """
    manifest = read_manifest(folder)
    if manifest.network != network:
        raise EngineMismatchError(
            f"{folder} holds the engine of {manifest.network}, not of {network}; build {network} again"
        )
    for graph in manifest.graphs.values():
        _check_size(folder / graph.file, graph.size_bytes, network)
        if graph.data_file:
            _check_size(folder / graph.data_file, graph.data_size_bytes, network)
    opener = _opener(manifest)
    return InstalledEngine(
        manifest,
        {name: opener(folder / graph.file, graph) for name, graph in manifest.graphs.items()},
    )


def _opener(manifest: Manifest) -> Callable[[Path, Graph], Engine]:
    if manifest.kind == "onnxruntime":
        from .onnxruntime import open_onnxruntime

        return partial(open_onnxruntime, device=manifest.device)
    raise EngineMismatchError(
        f"engine kind {manifest.kind!r} of {manifest.network} can't be run by this version; "
        "it runs onnxruntime. Build the engine again with predict2-export"
    )


def _check_size(path: Path, expected: int, network: str) -> None:
    actual = path.stat().st_size if path.is_file() else None
    if actual != expected:
        found = "is missing" if actual is None else f"has {actual} bytes instead of {expected}"
        raise EngineMismatchError(f"{path} {found}; build {network} again with predict2-export")
