# SPDX-License-Identifier: Apache-2.0
"""The 2B denoiser at its full width, from a file of the released structure to a verified engine.

    pytest -m slow -s tests/export/test_full_width.py

takes some 25 GB of disk and 20 GB of memory, and prints the peak of memory and the seconds of each step.
"""

import os
import subprocess
import sys
import time

import pytest

from predict2_runtime.engines import read_manifest
from predict2_spec.presets import PRESETS

pytestmark = pytest.mark.slow
PRESET = PRESETS["2b-720p-16fps"]
WRITE = """
import sys, torch
from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.networks.dit import Dit
from predict2_spec.networks import DIT_2B_VIDEO2WORLD

with torch.device("meta"):
    network = Dit(DIT_2B_VIDEO2WORLD)
weights = synthetic_weights(network, dtype=torch.bfloat16)
torch.save({f"net.{name}": weight.load() for name, weight in weights.items()}, sys.argv[1])
"""


def run(*argv):
    """Run a command; its peak memory in bytes and its seconds."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "predict2_export.cli", *map(str, argv)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024, time.monotonic() - began


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    path = folder / PRESET.video2world_path
    path.parent.mkdir(parents=True)
    # By another process: the peak of a command counts what its parent held when it was started.
    subprocess.run([sys.executable, "-c", WRITE, str(path)], check=True)
    return folder


def test_lowering_takes_little_more_memory_than_the_largest_tensor(checkpoints, tmp_path):
    peak, seconds = run(
        "onnx", "--preset", PRESET.name, "--stage", "video2world_denoiser",
        "--checkpoints", checkpoints, "--output", tmp_path,
    )  # fmt: skip
    data = tmp_path / "video2world_denoiser.main.onnx.data"
    assert data.stat().st_size >= 2 * 1_956_413_440  # bfloat16, every parameter once
    print(f"\n2B to ONNX in bfloat16: {peak / 1e9:.1f} GB, {seconds:.0f} s")  # noqa: T201
    assert peak < 2e9  # torch and the graph take most of it, the largest tensor 34 MB


def test_a_verified_engine_is_built_on_a_machine_with_24_gb(checkpoints, tmp_path):
    peak, seconds = run(
        "build", "--preset", PRESET.name, "--only", "video2world_denoiser",
        "--checkpoints", checkpoints, "--output", tmp_path / "served",
    )  # fmt: skip
    manifest = read_manifest(tmp_path / "served" / "video2world_denoiser" / "1")
    assert manifest.verification["main"].cosine > 0.99999
    print(f"\n2B to a verified float32 engine: {peak / 1e9:.1f} GB, {seconds:.0f} s")  # noqa: T201
    assert peak < 20e9
