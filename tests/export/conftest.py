# SPDX-License-Identifier: Apache-2.0
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# Tiny layers gain nothing from threads and lose much to them when the machine has other work.
torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
TRAINED = ROOT / "export" / "predict2_export" / "toyworld" / "weights"
BUILT = (
    ROOT / "build" / "test" / "plans"
)  # kept between runs, so that only what changed is built again
GPUS = ("sm89", "sm120")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """The toy's files with random weights. Tests leave them as they are."""
    # Here, because `make gpu` runs tests beside this file on machines that have torch and little else.
    from predict2_export.toy import write_toy_checkpoint

    folder = tmp_path_factory.mktemp("checkpoints")
    write_toy_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def toy_plans():
    """The toy's plans for two RTX GPUs, built from its trained weights by the command people use.

    Its `repository`, the `onnx` files that the plans are of, the command's `argv` and what it `said`.
    """
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="plans are built by TensorRT-RTX: the extra tensorrt-rtx"
    )
    repository, onnx = BUILT / "toy", BUILT / "onnx"
    argv = (
        "engine", "--preset", "toy", "--flavour", "tensorrt_rtx", "--gpu-arch", *GPUS,
        "--checkpoints", TRAINED, "--output", repository, "--keep-onnx", onnx,
    )  # fmt: skip
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs in one checkout build one after the other
        if not onnx.is_dir():
            shutil.rmtree(
                repository, ignore_errors=True
            )  # whose plans would be kept, and nothing lowered
        # A process of its own: what goes wrong in TensorRT can take its process with it.
        done = subprocess.run(
            [sys.executable, "-m", "predict2_export.cli", *map(str, argv)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout
    return SimpleNamespace(repository=repository, onnx=onnx, argv=argv, said=done.stdout)
