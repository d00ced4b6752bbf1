# SPDX-License-Identifier: Apache-2.0
"""Python face of the CUDA kernels: finding the library and calling its C ABI."""

import ctypes
from functools import cache
from importlib import resources
from pathlib import Path

_ARRAY = ctypes.c_void_p
_SIZE = ctypes.c_int64
_STREAM = ctypes.c_void_p
_SIGNATURES = {
    "predict2_cfg_ab2_step": (ctypes.c_int, *(_ARRAY,) * 8, *(_SIZE,) * 4, _STREAM),
    "predict2_adaln_modulate": (ctypes.c_int, *(_ARRAY,) * 3, *(_SIZE,) * 4, _STREAM),
    "predict2_adaln_modulate_e4m3": (ctypes.c_int, *(_ARRAY,) * 4, *(_SIZE,) * 4, _STREAM),
    "predict2_gated_residual": (ctypes.c_int, *(_ARRAY,) * 4, *(_SIZE,) * 3, _STREAM),
    "predict2_gated_residual_modulate": (ctypes.c_int, *(_ARRAY,) * 6, *(_SIZE,) * 4, _STREAM),
    "predict2_gated_residual_modulate_e4m3": (
        (ctypes.c_int, *(_ARRAY,) * 7, *(_SIZE,) * 4, _STREAM)
    ),
    "predict2_gelu_quantize": (*(_ARRAY,) * 3, *(_SIZE,) * 2, _STREAM),
    "predict2_qk_norm_rope": (
        (ctypes.c_int, *(_ARRAY,) * 12, *(_SIZE,) * 13, ctypes.c_float, ctypes.c_int, _STREAM)
    ),
    "predict2_qk_prep": ((ctypes.c_int, *(_ARRAY,) * 13, *(_SIZE,) * 11, ctypes.c_float, _STREAM)),
    "predict2_v_scales": (*(_ARRAY,) * 2, *(_SIZE,) * 4, _STREAM),
    "predict2_v_prep": (*(_ARRAY,) * 4, *(_SIZE,) * 4, _STREAM),
    "predict2_rms_silu": (ctypes.c_int, *(_ARRAY,) * 3, *(_SIZE,) * 4, ctypes.c_int, _STREAM),
}
FLOAT, BFLOAT16 = 0, 1  # the `dtype` of a launcher
INT8, E4M3 = 0, 1  # the `codes` of one


class KernelError(RuntimeError):
    """A kernel refused its arguments or failed to launch."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they were not built (no nvcc when the package was installed)."""
    path = resources.files(__package__) / "lib" / "libpredict2_kernels.so"
    if not path.is_file():
        return None
    return declare(ctypes.CDLL(str(path)))


def declare(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of a library's functions."""
    loaded.predict2_error_name.restype = ctypes.c_char_p
    loaded.predict2_error_name.argtypes = [ctypes.c_int]
    for name, arguments in _SIGNATURES.items():
        if hasattr(loaded, name):  # a library older than this file lacks some
            function = getattr(loaded, name)
            function.restype, function.argtypes = ctypes.c_int, arguments
    return loaded


def plugin_path(tensorrt_major: int, self_registering: bool = False) -> Path | None:
    """The TensorRT plugins for a major version of TensorRT, or None where they were not built.

    Args:
        tensorrt_major: 10 or 11; a library works with its own version only.
        self_registering: the one for hosts that only open it, as Triton does; others ask TensorRT's
            plugin registry to load the plain one.
    """
    name = "libpredict2_trt_plugin" + ("_triton" if self_registering else "") + ".so"
    path = resources.files(__package__) / "lib" / f"trt{tensorrt_major}" / name
    return Path(str(path)) if path.is_file() else None


def check(code: int) -> None:
    """Raise when a launcher returned an error.

    Raises:
        KernelError: the code is not 0; the message is CUDA's name for it.
    """
    if code:
        found = library()
        name = found.predict2_error_name(code).decode() if found else str(code)
        raise KernelError(f"kernel launch failed: {name}")
