# SPDX-License-Identifier: Apache-2.0
"""TensorRT's Python bindings. Two flavours share one interface: TensorRT, and TensorRT-RTX.

Code that is checked against the real interface writes

    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = bindings(flavour)
"""

from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

from predict2_spec.errors import EngineMismatchError

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

# Their wheels: the bindings of RTX can be installed without the package that would name them well.
_MODULES = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_ADVICE = {
    "tensorrt": "pip install tensorrt, of 10.15 or later, or use NVIDIA's container",
    "tensorrt_rtx": "pip install 'cosmos-predict2-triton[tensorrt-rtx]'",
}


def bindings(flavour: Flavour) -> ModuleType:
    """The module of a flavour.

    Raises:
        EngineMismatchError: it isn't installed, or its libraries can't be loaded.
    """
    reasons = []
    for name in _MODULES[flavour]:
        try:
            return import_module(name)
        except (ImportError, OSError) as error:  # OSError: a library it needs
            reasons.append(str(error))
    raise EngineMismatchError(
        f"{flavour} can't be used here ({'; '.join(reasons)}); {_ADVICE[flavour]}"
    )


def major(trt: ModuleType) -> int:
    """The major version of TensorRT whose classes a flavour has; RTX counts its own versions.

    Plugins are compiled for one.
    """
    version: str = trt.__version__
    return 11 if "rtx" in trt.__name__ else int(version.split(".")[0])
