# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of the kernels, read from the library; needs no GPU."""

import re
import shutil
import subprocess
from importlib import resources

import pytest

USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")
# Registers that let as many blocks share a processor as keep its memory busy: 65536 / (threads * blocks).
BOUNDS = {
    "NormRopeI13__nv_bfloat16": 80,  # 3 blocks of 256
    "ModulateI13__nv_bfloat16": 72,  # 7 blocks of 128
    "ResidualI13__nv_bfloat16": 72,
}


@pytest.fixture(scope="module")
def usage():
    """(mangled name, registers, stack bytes, local bytes) of every kernel for every architecture."""
    library = resources.files("predict2_kernels") / "lib" / "libpredict2_kernels.so"
    tool = shutil.which("cuobjdump")
    if not library.is_file() or tool is None:
        pytest.skip("built without nvcc, or no cuobjdump")
    report = subprocess.run(
        [tool, "-res-usage", str(library)], capture_output=True, text=True, check=True
    )
    found = [(name, *map(int, numbers)) for name, *numbers in USAGE.findall(report.stdout)]
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
