# SPDX-License-Identifier: Apache-2.0
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from predict2_kernels import plugin_path

HERE = Path(__file__).parent
DECLARATIONS = HERE.parents[1] / "kernels" / "plugin" / "nvinfer"
ATTRIBUTES = {
    "Predict2QkNormRope": ["num_heads", "packed", "rotate", "heads_first", "q_scale"],
    "Predict2Modulate": [],
    "Predict2GatedModulate": [],
    "Predict2GatedAdd": [],
}
OUTPUTS = {
    "Predict2QkNormRope": 3,
    "Predict2Modulate": 1,
    "Predict2GatedModulate": 2,
    "Predict2GatedAdd": 1,
}
both_majors = pytest.mark.parametrize("major", [10, 11])
both_kinds = pytest.mark.parametrize("self_registering", [False, True])


def built(major, self_registering=False):
    path = plugin_path(major, self_registering)
    if path is None:
        pytest.skip(f"built without nvcc, or not for TensorRT {major}")
    return path


def run(*command, **environment):
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | environment
    )


@both_majors
def test_every_plugin_lives_through_what_tensorrt_asks_of_it(major, tmp_path):
    library = built(major)
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    harness = tmp_path / "harness"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-DPREDICT2_TENSORRT_MAJOR={major}"]
    source = HERE / "plugin_harness.cpp"
    compiled = run(compiler, *options, f"-I{DECLARATIONS}", source, "-o", harness, "-ldl")
    assert compiled.returncode == 0, compiled.stderr
    result = run(harness, library)
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stdout + result.stderr


@both_majors
@both_kinds
def test_libraries_export_two_functions_and_need_no_tensorrt(major, self_registering):
    library = built(major, self_registering)
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("no binutils")
    symbols = run("nm", "-D", "--defined-only", library).stdout.split("\n")
    assert [line.split()[-1] for line in symbols if line] == ["getCreators", "setLoggerFinder"]
    assert "nvinfer" not in run("readelf", "-d", library).stdout


@both_majors
def test_library_says_so_when_it_is_opened_without_tensorrt(major):
    library = built(major, self_registering=True)
    result = run(sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(library)!r})")
    assert result.returncode == 0
    assert "no TensorRT of this library's major version is loaded" in result.stderr


@both_kinds
def test_the_real_registry_lists_and_creates_every_plugin(self_registering):
    """TensorRT-RTX's registry; it shares the interface of TensorRT 11 and can be installed by pip."""
    library = built(11, self_registering)
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs pip install tensorrt_rtx_cu13_libs tensorrt_rtx_cu13_bindings")
    how = ["--open"] if self_registering else []
    folder = str(Path(spec.origin).parent)
    result = run(
        *(sys.executable, HERE / "registry_probe.py", library, *how), LD_LIBRARY_PATH=folder
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {name: fields for name, _, _, fields in answer["listed"]} == ATTRIBUTES
    assert {(version, of) for _, version, of, _ in answer["listed"]} == {("1", "predict2")}
    assert answer["created"] == [[name, "1", "predict2", OUTPUTS[name]] for name in ATTRIBUTES]
    assert answer["errors"] == []
    assert answer["refused"]
    reason = "Predict2QkNormRope: an attribute is missing or out of range"
    if self_registering:  # nobody lends a logger to a library that is only opened
        assert reason in result.stderr
    else:  # the message went through TensorRT's own logger: its class has the layout we claim
        assert answer["reasons"] == [reason]
