# SPDX-License-Identifier: Apache-2.0
"""Installed plans of TensorRT at the sizes they were tuned for, tensors on the GPU already.

python -m benchmarks.engines.bench_plans REPOSITORY...
"""

import sys
from pathlib import Path

import numpy as np

from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_runtime.engines import open_engine, read_manifest
from predict2_runtime.engines.bindings import FLAVOURS
from predict2_runtime.repository import VERSION_FOLDER, read_preset
from predict2_spec.manifest import MANIFEST_FILE, Graph
from predict2_spec.tensors import served_stages

COMMAND = "make tensorrt-gpu"


def inputs_of(graph: Graph) -> dict[str, np.ndarray]:
    """Random inputs of the shapes the plan was tuned for; of ids and masks, ones."""
    generator = np.random.default_rng(0)
    found = {}
    for name, bounds in graph.profile.items():
        if graph.inputs[name].startswith(("INT", "BOOL", "UINT")):
            found[name] = np.ones(bounds.opt, np.int64)
        else:
            found[name] = generator.standard_normal(bounds.opt, np.float32)
    return found


def measure(folder: Path, stage: str) -> None:
    """Time every graph of an engine and record it. It leaves the GPU before the next one comes."""
    installed = open_engine(folder, stage)
    manifest = installed.manifest
    plugins = "plugins" if manifest.plugins else "standard operators"
    for name, graph in manifest.graphs.items():
        given = {k: installed.placement.to_engine(v) for k, v in inputs_of(graph).items()}
        run = installed.graphs[name]
        seconds = gpu_seconds(lambda run=run, given=given: run(given), runs=20)
        title = f"{manifest.kind} {manifest.network}/{name}, {manifest.preset}, {manifest.precision}, {plugins}"
        shapes = ", ".join(f"{k} {list(b.opt)}" for k, b in graph.profile.items())
        record(title, COMMAND, {**summary(seconds), "note": shapes})


def main() -> None:
    """Measure the plans of all repositories named."""
    for repository in map(Path, sys.argv[1:]):
        for stage in served_stages(read_preset(repository)):
            folder = repository / stage.name / VERSION_FOLDER
            if (folder / MANIFEST_FILE).is_file() and read_manifest(folder).kind in FLAVOURS:
                measure(folder, stage.name)


if __name__ == "__main__":
    main()
