# SPDX-License-Identifier: Apache-2.0
import ctypes
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from predict2_kernels import plugin_path
from predict2_kernels.reference import (
    Rotary,
    adaln_modulate,
    gated_residual,
    gated_residual_modulate,
    qk_norm_rope,
)

HERE = Path(__file__).parent
DECLARATIONS = HERE.parents[1] / "kernels" / "plugin" / "nvinfer"
ATTRIBUTES = {
    "Predict2QkNormRope": ["num_heads", "packed", "heads_first", "q_scale"],
    "Predict2QkNorm": ["num_heads", "packed", "heads_first", "q_scale"],
    "Predict2Modulate": [],
    "Predict2GatedModulate": [],
    "Predict2GatedAdd": [],
}
OUTPUTS = {
    "Predict2QkNormRope": 3,
    "Predict2QkNorm": 2,
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
        pytest.skip("needs pip install 'cosmos-predict2-triton[tensorrt-rtx]'")
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


def call(library, name, inputs, outputs, integers=(), real=0.0):
    shapes = ((ctypes.c_int64 * 4) * len(inputs))(*((ctypes.c_int64 * 4)(*t.shape) for t in inputs))
    return library.call_plugin(
        name.encode(),
        (ctypes.c_int32 * len(integers))(*integers),
        len(integers),
        ctypes.c_float(real),
        {torch.float32: 0, torch.bfloat16: 7}[inputs[0].dtype],
        len(inputs),
        (ctypes.c_int * len(inputs))(*(t.ndim for t in inputs)),
        shapes,
        (ctypes.c_void_p * len(inputs))(*(t.data_ptr() for t in inputs)),
        (ctypes.c_void_p * len(outputs))(*(t.data_ptr() for t in outputs)),
    )


def poisoned(*shape, dtype):
    return torch.full(shape, math.nan, dtype=dtype)


def assert_close(actual, expected):
    # the reference may round a value on the edge to the other side: a step of 2^-7 in bf16
    rtol = 2**-7 if actual.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=5e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batched", [False, True])
def test_called_plugins_modulate_as_their_references(host_library, dtype, batched):
    frames = (2, 3) if batched else (3,)
    x, y = (torch.randn(*frames, 4, 64).to(dtype) for _ in range(2))
    m, following = (torch.randn(*frames, count * 64).to(dtype) for count in (3, 2))
    out, total = poisoned(*x.shape, dtype=dtype), poisoned(*x.shape, dtype=dtype)
    assert call(host_library, "Predict2Modulate", [x, m], [out]) == 0
    assert_close(out, adaln_modulate(x, m))
    assert call(host_library, "Predict2GatedAdd", [x, y, m], [total]) == 0
    assert torch.equal(total, gated_residual(x, y, m))
    total, out = poisoned(*x.shape, dtype=dtype), poisoned(*x.shape, dtype=dtype)
    inputs = [x, y.flatten(0, -2)[None], m, following]  # y of the same tokens in another shape
    assert call(host_library, "Predict2GatedModulate", inputs, [total, out]) == 0
    expected = gated_residual_modulate(x, y, m, following)
    assert torch.equal(total, expected[0])
    assert_close(out, expected[1])
    assert call(host_library, "Predict2Modulate", [x, m[..., :64].contiguous()], [out]) != 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [0, 1])
@pytest.mark.parametrize("rotate", [0, 1])
@pytest.mark.parametrize("heads_first", [0, 1])
def test_called_plugin_prepares_queries_and_keys(host_library, dtype, packed, rotate, heads_first):
    batch, heads, head_dim, grid = 3, 3, 64, (2, 1, 3)
    tokens, width = math.prod(grid), heads * head_dim
    parts = [torch.randn(batch, tokens, width).to(dtype) for _ in range(3)]
    if not (packed or rotate):
        parts[1] = torch.randn(batch, 4, width).to(dtype)  # text
    weights = [torch.randn(head_dim).to(dtype) for _ in range(2)]
    sizes = zip(grid, (12, 10, 10), strict=True)
    tables = [torch.randn(2, positions, channels) for positions, channels in sizes]
    inputs = [torch.cat(parts, dim=-1)] if packed else parts[:2]
    inputs += weights + (tables if rotate else [])
    rotary = Rotary(*tables) if rotate else None
    expected = [
        qk_norm_rope(parts[0], weights[0], rotary, 0.25),
        qk_norm_rope(parts[1], weights[1], rotary),
        parts[2].view(batch, tokens, heads, head_dim),
    ][: 3 if packed else 2]
    if heads_first:
        expected = [t.transpose(1, 2) for t in expected]
    outputs = [poisoned(*t.shape, dtype=dtype) for t in expected]
    name, integers = "Predict2QkNorm" + "Rope" * rotate, (heads, packed, heads_first)
    assert call(host_library, name, inputs, outputs, integers, 0.25) == 0
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_close(actual, wanted)
