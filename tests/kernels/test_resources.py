# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the kernels, read from the library, or from a build for Hopper; needs no GPU."""

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
COMPILED = re.compile(
    r"Compiling entry function '(\S+)'.*?(\d+) bytes stack.*?(\d+) bytes spill stores"
    r".*?Used (\d+) registers",
    re.DOTALL,
)
# Registers that let as many blocks share a processor as keep its memory busy: 65536 / (threads * blocks).
BOUNDS = {
    "NormRopeI13__nv_bfloat16": 80,  # 3 blocks of 256
    "ModulateI13__nv_bfloat16": 72,  # 7 blocks of 128
    "ResidualI13__nv_bfloat16": 72,
    "NormI13__nv_bfloat16": 40,  # 6 blocks of 256
    "QuantizeILi": 64,  # 2 blocks of 512
    "QkPrepareI": 80,  # 3 blocks of 256
    "9TransposeE": 64,  # 4 blocks of 256
    "7LargestE": 64,
}
E4M3 = {
    "adaln_modulate",
    "gated_residual_modulate",
    "gelu_quantize",
    "qk_prep",
    "v_prep",
}  # of the kernels, those that write it


@pytest.fixture(scope="module")
def hopper(tmp_path_factory):
    """Of every .cu compiled for sm_90a by itself: its PTX and ptxas's report."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc")
    folder = tmp_path_factory.mktemp("sm_90a")
    found = {}
    for path in KERNELS.glob("*/*.cu"):
        options = [
            "-std=c++17",
            f"-I{KERNELS / 'include'}",
            "-gencode=arch=compute_90a,code=sm_90a",
        ]
        options += [
            "-Xptxas=-v",
            "-keep",
            f"-keep-dir={folder}",
            "-o",
            folder / f"{path.stem}.cubin",
        ]
        run = subprocess.run(
            ["nvcc", *options, "-cubin", path], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        found[path.stem] = (folder / f"{path.stem}.ptx").read_text(), run.stderr
    assert found
    return found


def of_library():
    library = resources.files("predict2_kernels") / "lib" / "libpredict2_kernels.so"
    tool = shutil.which("cuobjdump")
    if not library.is_file() or tool is None:
        pytest.skip("built without nvcc, or no cuobjdump")
    report = subprocess.run(
        [tool, "-res-usage", str(library)], capture_output=True, text=True, check=True
    )
    return [(name, *map(int, numbers)) for name, *numbers in USAGE.findall(report.stdout)]


@pytest.fixture(scope="module", params=["library", "hopper"])
def usage(request):
    """(mangled name, registers, stack bytes, spilled bytes) of every kernel: for every architecture, or for one."""
    if request.param == "library":
        found = of_library()
    else:
        reports = "".join(report for _, report in request.getfixturevalue("hopper").values())
        found = [
            (name, int(registers), int(stack), int(spilled))
            for name, stack, spilled, registers in COMPILED.findall(reports)
        ]
    assert found
    return found


def test_no_kernel_spills(usage):
    assert [entry for entry in usage if entry[2] or entry[3]] == []


@pytest.mark.parametrize("kernel", BOUNDS)
def test_hot_kernels_leave_room_for_enough_blocks(usage, kernel):
    registers = [entry[1] for entry in usage if kernel in entry[0]]
    if not registers:
        pytest.skip("built before this kernel")
    assert max(registers) <= BOUNDS[kernel]


def test_an_instruction_converts_two_values_to_e4m3(hopper):
    found = {name for name, (ptx, _) in hopper.items() if "cvt.rn.satfinite.e4m3x2.f32" in ptx}
    assert found == E4M3
