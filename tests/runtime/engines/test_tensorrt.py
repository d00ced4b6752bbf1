# SPDX-License-Identifier: Apache-2.0
"""Opening engines of TensorRT, as far as a machine without a GPU gets; TensorRT-RTX is the real one."""

import importlib.util
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from predict2_runtime.engines.tensorrt import read_plan
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_spec.errors import EngineMismatchError

COMMAND = "predict2-export engine --preset 2b-480p-16fps --only vae_decoder --flavour {}"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@without_gpu
def test_a_machine_without_a_gpu_is_told_so(rtx_folder):
    with pytest.raises(EngineMismatchError) as error:
        rtx_folder.open()
    said = str(error.value)
    assert f"needs a CUDA GPU of sm89+sm120, and torch {torch.__version__} finds none" in said
    assert said.endswith("predict2-export build --preset 2b-480p-16fps --only vae_decoder")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"versions": {"tensorrt_rtx": "1.6.0.1"}},
            r"was built by tensorrt_rtx 1\.6\.0\.1, and 1\.\d+\.\d+\.\d+ is installed; install 1\.6\.0\.1, or build",
        ),
        ({"versions": {}}, r"its manifest does not say which"),
        (
            {"plugins": {"Predict2QkNormRope": "1"}},
            "needs the plugins Predict2QkNormRope, which TensorRT-RTX can't run",
        ),
        ({"weights": "stripped"}, "was built without its weights and wasn't refitted"),
    ],
)
def test_an_engine_of_another_kind_of_machine_is_refused(rtx_folder, changes, message):
    with pytest.raises(EngineMismatchError, match=message) as error:
        rtx_folder.open(**changes)
    assert str(error.value).endswith(COMMAND.format("tensorrt_rtx"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="it is installed")
def test_bindings_that_are_not_installed_are_named_with_the_way_to_them(rtx_folder):
    message = (
        "tensorrt can't be used here .*; pip install tensorrt, of 10.15 or later, or use NVIDIA's"
    )
    with pytest.raises(EngineMismatchError, match=message):
        rtx_folder.open(kind="tensorrt")


def test_a_plan_of_another_size_is_refused(rtx_folder):
    graph = rtx_folder.manifest.graphs["first"]
    graphs = {"first": replace(graph, size_bytes=graph.size_bytes + 1)}
    with pytest.raises(EngineMismatchError, match=r"first\.plan has \d+ bytes instead of") as error:
        rtx_folder.open(graphs=graphs)
    assert str(error.value).endswith(COMMAND.format("tensorrt_rtx"))


def test_a_damaged_plan_is_refused_in_tensorrts_words(rtx_folder, tmp_path):
    path = tmp_path / "first.plan"
    path.write_bytes(b"\0" * 4096)
    message = rf"tensorrt_rtx can't open {path}: MALFORMED_ENGINE\. The file is damaged"
    with pytest.raises(EngineMismatchError, match=message):
        read_plan(path, rtx_folder.manifest, "tensorrt_rtx")


def test_an_empty_plan_is_refused(rtx_folder, tmp_path):
    path = tmp_path / "first.plan"
    path.touch()
    with pytest.raises(EngineMismatchError, match=r"can't open .*first\.plan: it is empty\. The"):
        read_plan(path, rtx_folder.manifest, "tensorrt_rtx")


@without_gpu
def test_a_plan_that_tensorrt_refuses_is_refused_with_the_last_errors_it_logged(rtx_folder, caplog):
    path = rtx_folder.folder / "first.plan"
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(
            EngineMismatchError, match=r"can't open .*first\.plan: .*CUDA driver version"
        ) as error,
    ):
        read_plan(path, rtx_folder.manifest, "tensorrt_rtx")
    assert str(error.value).endswith(COMMAND.format("tensorrt_rtx"))
    assert [r.levelname for r in caplog.records if "CUDA driver version" in r.message] == ["ERROR"]


def test_the_log_remembers_a_few_errors_and_passes_on_warnings(rtx_folder, caplog):
    log = tensorrt_log("tensorrt_rtx")
    severity = type(log).Severity
    log.errors.clear()
    with caplog.at_level(logging.DEBUG):
        log.log(severity.WARNING, "beware")
        log.log(severity.INFO, "chatter")
        for number in range(9):
            log.log(severity.ERROR, f"error {number}")
    assert list(log.errors) == [f"error {n}" for n in range(5, 9)]
    levels = [(record.levelname, record.message) for record in caplog.records]
    assert levels[0] == ("WARNING", "tensorrt_rtx: beware")
    assert levels[1] == ("ERROR", "tensorrt_rtx: error 0")


def test_a_missing_torch_is_named(rtx_folder):
    rtx_folder.write()
    code = (
        "import sys, pathlib; sys.modules['torch'] = None\n"
        "from predict2_runtime.engines import open_engine\n"
        "from predict2_spec.errors import EngineMismatchError\n"
        f"try: open_engine(pathlib.Path({str(rtx_folder.folder)!r}), 'vae_decoder')\n"
        "except EngineMismatchError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "computes on torch's tensors, and import of torch halted" in result.stdout
    assert result.stdout.strip().endswith("install torch for this machine's CUDA")
