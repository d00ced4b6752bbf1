# SPDX-License-Identifier: Apache-2.0
"""An installed plan as a model of Triton's own TensorRT backend: tensors in, tensors out, no Python between.

The stages of this package stay what the pipelines call. A native model is for programs that want a network alone,
such as a text encoder for prompts that are tokenized elsewhere, and for measuring what Python costs.
"""

import os
import shutil
from pathlib import Path

from predict2_runtime.engines import read_manifest
from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.errors import InvalidRequestError
from predict2_spec.manifest import Graph, Manifest

from .installation import replacing

SUFFIX = "_plan"  # of the native model's name, after the stage's
_TYPES = {
    "BFLOAT16": "TYPE_BF16",
    "FLOAT16": "TYPE_FP16",
    "FLOAT": "TYPE_FP32",
    "INT64": "TYPE_INT64",
    "INT32": "TYPE_INT32",
    "UINT8": "TYPE_UINT8",
    "BOOL": "TYPE_BOOL",
}


def install_native(repository: Path, stage: str) -> Path:
    """Add the native model of a stage to a repository; the plan isn't copied where a link will do.

    Args:
        repository: what `predict2-export engine` made.
        stage: one of its stages.

    Returns:
        The model's folder.

    Raises:
        EngineMismatchError: the stage has no engine.
        InvalidRequestError: Triton's TensorRT backend can't run it.
    """
    source = repository / stage / VERSION_FOLDER
    manifest = read_manifest(source)
    graph = _only_graph(manifest)
    target = repository / (stage + SUFFIX)
    with replacing(target) as folder:
        (folder / "config.pbtxt").write_text(native_config(stage + SUFFIX, graph, manifest))
        (folder / VERSION_FOLDER).mkdir()
        _link(source / graph.file, folder / VERSION_FOLDER / "model.plan")
    return target


def native_config(name: str, graph: Graph, manifest: Manifest) -> str:
    """The config.pbtxt of a plan whose tensors all have the batch as their first dim."""
    batch = min(bounds.max[0] for bounds in graph.profile.values())
    lines = [
        f"# {manifest.network} of preset {manifest.preset}, as a plan without Python around it.",
        f'name: "{name}"',
        'platform: "tensorrt_plan"',
        f"max_batch_size: {batch}",
        *_tensors("input", graph.inputs),
        *_tensors("output", graph.outputs),
        "dynamic_batching { }",
        "instance_group [ { count: 1, kind: KIND_GPU } ]",
    ]
    return "\n".join(lines) + "\n"


def _tensors(side: str, described: dict[str, str]) -> list[str]:
    found = []
    for name, text in described.items():
        kind, _, dims = text.partition(" ")
        sizes = [size.strip() for size in dims.strip("[]").split(",")][1:]  # without the batch
        numbers = ", ".join(size if size.isdecimal() else "-1" for size in sizes)
        found.append(f'{side} {{ name: "{name}", data_type: {_TYPES[kind]}, dims: [ {numbers} ] }}')
    return found


def _only_graph(manifest: Manifest) -> Graph:
    """The graph of an engine that Triton's backend can run.

    Raises:
        InvalidRequestError: it can't.
    """
    if manifest.kind != "tensorrt":
        raise InvalidRequestError(
            f"{manifest.network} is an engine of {manifest.kind}, and Triton's backend runs plans of tensorrt; build it with "
            "predict2-export engine --flavour tensorrt"
        )
    if len(manifest.graphs) != 1:
        raise InvalidRequestError(
            f"{manifest.network} has {len(manifest.graphs)} graphs, which only its stage knows how to chain; "
            "a native model has one"
        )
    if manifest.weights.startswith("stripped"):
        raise InvalidRequestError(
            f"{manifest.network} was built without its weights, and Triton's backend doesn't refit; build it again "
            "without --strip-weights"
        )
    (graph,) = manifest.graphs.values()
    return graph


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk can't do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
