# SPDX-License-Identifier: Apache-2.0
"""Python face of the CUDA kernels: finding the library and calling its C ABI."""

import ctypes
from functools import cache
from importlib import resources

_CFG_AB2_STEP = (
    (ctypes.c_void_p,) * 6  # arrays
    + (ctypes.c_int64,) * 4  # sizes
    + (ctypes.c_float,) * 2
    + (ctypes.c_double,) * 3  # scalars of the step
    + (ctypes.c_void_p,)  # stream
)


class KernelError(RuntimeError):
    """A kernel refused its arguments or failed to launch."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built (no nvcc when the package was installed)."""
    path = resources.files(__package__) / "lib" / "libpredict2_kernels.so"
    if not path.is_file():
        return None
    loaded = ctypes.CDLL(str(path))
    loaded.predict2_error_name.restype = ctypes.c_char_p
    loaded.predict2_error_name.argtypes = [ctypes.c_int]
    loaded.predict2_cfg_ab2_step.restype = ctypes.c_int
    loaded.predict2_cfg_ab2_step.argtypes = _CFG_AB2_STEP
    return loaded


def check(code: int) -> None:
    """Raise when a launcher returned an error.

    Raises:
        KernelError: the code is not 0; the message is CUDA's name for it.
    """
    if code:
        found = library()
        name = found.predict2_error_name(code).decode() if found else str(code)
        raise KernelError(f"kernel launch failed: {name}")
