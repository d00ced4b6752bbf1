# SPDX-License-Identifier: Apache-2.0
"""Where a kernel runs in a test: on a GPU, and as a program for the CPU made of the same source."""

import ctypes
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from predict2_kernels import declare, library

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
LAUNCH = re.compile(r"^( *)(\w[^\n]*?)<<<(.+?)>>>\(", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Backend:
    """A compiled library and the device of the tensors it takes."""

    functions: ctypes.CDLL
    device: str

    def call(self, name, *arguments):
        """Call a launcher on torch's current stream, which is put last."""
        import torch

        cuda = self.device == "cuda"
        stream = torch.cuda.current_stream().cuda_stream if cuda else None
        assert getattr(self.functions, name)(*arguments, stream) == 0


@pytest.fixture(scope="session")
def host_library(tmp_path_factory):
    """The kernels' and plugins' own sources for the CPU, with the headers in host_cuda for CUDA's."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("host_kernels")
    plugins = [KERNELS / "plugin" / name for name in ("plugin.cpp", "registry.cpp")]
    plugins += [*KERNELS.glob("*/*_plugin.cpp"), HERE / "plugin_call.cpp"]
    sources = [KERNELS / "c_api.cpp", HERE / "e4m3_call.cpp", *plugins]
    for path in KERNELS.glob("*/*.cu"):
        text, launches = LAUNCH.subn(r"\1host_cuda::Launch(\2, \3)(", path.read_text())
        assert launches
        sources.append(folder / f"{path.stem}.cpp")
        sources[-1].write_text(text)
    folders = (HERE / "host_cuda", KERNELS, KERNELS / "include", KERNELS / "plugin" / "nvinfer")
    includes = [f"-I{path}" for path in folders]
    includes += [f"-I{path.parent}" for path in KERNELS.glob("*/*.cu")]
    # every rounding as written: nvcc alone may contract products and sums
    options = ["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-shared"]
    options.append("-DPREDICT2_TENSORRT_MAJOR=11")
    target = folder / "libhost_kernels.so"
    command = [compiler, *options, *includes, *map(str, sources), "-o", str(target)]
    compiled = subprocess.run(command, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    return declare(ctypes.CDLL(str(target)))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def backend(request):
    """Both backends, one after the other."""
    if request.param == "cpu":
        return Backend(request.getfixturevalue("host_library"), "cpu")
    built = library()
    if not hasattr(built, "predict2_v_prep"):
        pytest.skip("built without nvcc, or before these kernels")
    return Backend(built, "cuda")


@pytest.fixture(params=["cpu", "built"])
def launchers(request):
    """The library for the CPU and the one that nvcc built, for what launchers do without a GPU."""
    if request.param == "cpu":
        return request.getfixturevalue("host_library")
    built = library()
    if not hasattr(built, "predict2_v_prep"):
        pytest.skip("built without nvcc, or before these kernels")
    return built


@pytest.fixture(scope="session")
def assert_quantized():
    """Asserts that codes * scales is u [..., D], where u is known to within `error`, as near as e4m3 can be."""
    import torch

    def check(codes, scales, u, error):
        u, scales = u.double().cpu(), scales.double().cpu()
        largest = u.abs().amax(-1, keepdim=True)
        of_row = torch.as_tensor(error).expand_as(u).amax(-1, keepdim=True)
        assert ((scales * 448 - largest).abs() <= of_row + largest * 2**-22 + 448 * 2.0**-64).all()
        exact = u / scales
        # e4m3 has 8 steps to a power of two, from 2^-6 on
        exponents = exact.abs().clamp(2.0**-6, 448).log2().floor()
        off = (codes.cpu().double() - exact).abs()
        assert (off <= torch.exp2(exponents - 4) * (1 + 2**-20) + error / scales).all()

    return check
