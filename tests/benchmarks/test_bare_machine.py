# SPDX-License-Identifier: Apache-2.0
"""`make gpu` on a machine that has torch, numpy, pytest and array-api-compat, and nothing else of ours."""

import os
import subprocess
import sys

import pytest

from benchmarks.gpu import SECTIONS
from benchmarks.results import ROOT

# Python imports it at its start, before anything of ours.
SITE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""
ABSENT = {
    "PIL", "av", "diffusers", "huggingface_hub", "hypothesis", "modelopt", "onnx", "onnxruntime", "onnxscript", "peft",
    "pytriton", "rich", "safetensors", "tensorrt", "tensorrt_rtx", "tokenizers", "transformers", "tritonclient",
}  # fmt: skip
COMMANDS = [command for section in SECTIONS for command in section.commands]


@pytest.fixture
def python(tmp_path):
    """Runs Python there; what it said, and nothing if all went well."""
    (tmp_path / "sitecustomize.py").write_text(SITE.format(absent=ABSENT))
    folders = (tmp_path, *(ROOT / name for name in ("spec", "kernels", "runtime", "export")))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr if done.returncode else ""

    return run


def test_what_is_missing_there_is_missing_here(python):
    assert "No module named 'transformers'" in python("-c", "import transformers")


def test_every_benchmark_can_be_imported(python):
    modules = {part for command in COMMANDS for part in command if part.startswith("benchmarks.")}
    assert "benchmarks.engines.bench_workloads" in modules
    assert python("-c", f"import {', '.join(sorted(modules))}, benchmarks.gpu") == ""


def test_every_test_can_be_collected(python):
    paths = {part for command in COMMANDS for part in command if part.startswith("tests/")}
    wanted = ["-m", "pytest", "-q", "--collect-only", "-m", "gpu and not tensorrt"]
    wanted += ["-p", "no:hypothesispytest"]  # which comes and goes with hypothesis
    assert python(*wanted, *sorted(paths)) == ""


def test_sections_are_listed_without_torch(python):
    code = "import sys; sys.modules['torch'] = None; import benchmarks.gpu; benchmarks.gpu.main(['--list'])"
    assert python("-c", code) == ""
