# SPDX-License-Identifier: Apache-2.0
"""What building plans takes on a machine without a GPU, and what bfloat16 alone takes the toy's networks away from float32.

python -m benchmarks.engines.bench_builds
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.results import ROOT, record
from predict2_export.recipes import recipes
from predict2_export.toy import TRAINED
from predict2_export.verify import distance, random_inputs, run_module
from predict2_spec.presets import TOY

COMMAND = "python -m benchmarks.engines.bench_builds"
CASES = {  # what is built, by the arguments of `predict2-export engine`
    "toy, all stages, sm89 and sm120": (
        "--checkpoints",
        str(TRAINED.relative_to(ROOT)),
        "--gpu-arch",
        "sm89",
        "sm120",
    ),
    "2b text2image_denoiser, random weights, sm89": (
        *("--preset", "2b-480p-16fps", "--only", "text2image_denoiser", "--random-weights"),
        *("--gpu-arch", "sm89"),
    ),
}


def rounding() -> None:
    """Record how far each network is from float32 in bfloat16, in torch, on random inputs."""
    for recipe in recipes(TOY, TRAINED):
        module = recipe.module(recipe.weights())
        inputs = {name: random_inputs(graph) for name, graph in recipe.graphs(module).items()}
        answers = []
        for dtype in (torch.float32, torch.bfloat16):
            graphs = recipe.graphs(module.to(dtype))
            answers.append({name: run_module(graphs[name], x) for name, x in inputs.items()})
        for name in inputs:
            cosine, error = distance(answers[0][name], answers[1][name])
            values = {"cosine": round(cosine, 7), "max_error": round(error, 5)}
            record(f"plan.rounding {recipe.network}/{name}, toy, bfloat16", COMMAND, values)


def build(name: str, arguments: tuple[str, ...]) -> None:
    """Record what one build takes: time and memory of the whole process, bytes of its plans."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "predict2_export.cli", "engine"]
        command += ["--flavour", "tensorrt_rtx", "--output", f"{folder}/plans", *arguments]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)
        _, status, used = os.wait4(process.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, command
        plans = sum(path.stat().st_size for path in Path(folder).rglob("*.plan"))
        values = {
            "seconds": round(time.monotonic() - began, 1),
            "peak_bytes": used.ru_maxrss * 1024,
            "plan_bytes": plans,
            "arguments": " ".join(arguments),
        }
        record(f"plan.build {name}", COMMAND, values)


if __name__ == "__main__":
    rounding()
    for title, flags in CASES.items():
        build(title, flags)
