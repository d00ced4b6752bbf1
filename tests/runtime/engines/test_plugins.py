# SPDX-License-Identifier: Apache-2.0
"""Loading our plugins into a registry: TensorRT-RTX's, the only real one that needs no GPU; it shares 11's interface."""

import os
import subprocess
import sys

import pytest

from predict2_kernels import plugin_path

BEFORE = """
import ctypes, sys
import tensorrt_rtx_bindings as trt
from predict2_runtime.engines import plugins
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_spec.errors import EngineMismatchError
builder = trt.Builder(tensorrt_log("tensorrt_rtx"))  # makes ours the log of the process
"""


def run(code):
    """What a program prints; a registry is the process's, so each test has its own."""
    libraries = pytest.importorskip("tensorrt_rtx_libs").__path__[0]
    pytest.importorskip("tensorrt_rtx_bindings")
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LD_LIBRARY_PATH": libraries},  # the self-registering one looks there
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def built():
    """The library that registers itself."""
    if plugin_path(11) is None:
        pytest.skip("built without nvcc, or not for TensorRT 11")
    return plugin_path(11, self_registering=True)


def test_plugins_are_loaded_once(built):
    code = """
assert not plugins.registered(trt)
plugins.load_plugins(trt, {"Predict2QkNormRope": "1"}, "REBUILD")
first = plugins.registered(trt)
plugins.load_plugins(trt, {"Predict2QkNormRope": "1", "Predict2GatedAdd": "1"}, "REBUILD")
assert plugins.registered(trt) == first and ("Predict2GatedAdd", "1") in first
print(list(tensorrt_log("tensorrt_rtx").errors))
"""
    errors = run(code)[0]
    assert "exists already" not in errors
    assert "lugin" not in errors


def test_what_triton_opened_is_left_alone(built):
    code = f"""
ctypes.CDLL({str(built)!r})
before = plugins.registered(trt)
plugins.plugin_path = None  # nothing may ask for the other library
plugins.load_plugins(trt, {{"Predict2QkNormRope": "1"}}, "REBUILD")
print(before == plugins.registered(trt), len(before) > 1)
"""
    assert run(code) == ["True True"]


def test_another_version_of_a_plugin_is_refused(built):
    code = """
try: plugins.load_plugins(trt, {"Predict2GatedAdd": "1", "Predict2QkNormRope": "99"}, "REBUILD")
except EngineMismatchError as error: print(error)
"""
    (said,) = run(code)
    assert "needs the plugins Predict2QkNormRope 99, and the library of this version has" in said
    assert "Predict2QkNormRope 1" in said
    assert said.endswith("build it again: REBUILD")


def test_no_plugins_need_no_library():
    assert run("plugins.load_plugins(trt, {}, ''); print(plugins.registered(trt))") == ["set()"]


def test_a_library_that_was_not_built_is_named():
    code = """
plugins.plugin_path = lambda major: None  # as where nvcc was missing
try: plugins.load_plugins(trt, {"Predict2GatedAdd": "1"}, "REBUILD")
except EngineMismatchError as error: print(error)
"""
    (said,) = run(code)
    assert "needs the plugins Predict2GatedAdd, which weren't built for TensorRT 11 here" in said
    assert "docs/kernels.md" in said
    assert said.endswith("REBUILD --plugins none")


def test_a_library_that_is_none_is_refused(tmp_path):
    path = tmp_path / "libnone.so"
    path.write_text("not a library")
    code = f"""
from pathlib import Path
plugins.plugin_path = lambda major: Path({str(path)!r})
try: plugins.load_plugins(trt, {{"Predict2GatedAdd": "1"}}, "REBUILD")
except EngineMismatchError as error: print(error)
"""
    (said,) = run(code)
    assert f"can't load its plugins from {path}" in said
