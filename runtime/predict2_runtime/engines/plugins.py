# SPDX-License-Identifier: Apache-2.0
"""Our plugins in TensorRT's registry."""

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from predict2_kernels import plugin_path
from predict2_spec.errors import EngineMismatchError

from .bindings import major

NAMESPACE = "predict2"


def load_plugins(module: ModuleType, needed: Mapping[str, str], rebuild: str) -> None:
    """Make sure that TensorRT has the plugins `needed`: name -> version.

    A registry refuses the same plugins twice, and Triton may have opened the library that registers itself. So the
    library is loaded only where none of them is there.

    Args:
        module: TensorRT's bindings.
        needed: the plugins of an engine.
        rebuild: the command that builds the engine again.

    Raises:
        EngineMismatchError: the library wasn't built, can't be loaded, or has other versions.
    """
    if needed and not registered(module):
        _load_library(module, sorted(needed), rebuild)
    if missing := _missing(needed, registered(module)):
        names = ", ".join(f"{name} {version}" for name, version in sorted(missing.items()))
        found = ", ".join(f"{name} {version}" for name, version in sorted(registered(module)))
        raise EngineMismatchError(
            f"the engine needs the plugins {names}, and the library of this version has {found or 'none'}; "
            f"install the version that built it, or build it again: {rebuild}"
        )


def registered(module: ModuleType) -> set[tuple[str, str]]:
    """Names and versions of our plugins that TensorRT has now."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    creators = trt.get_plugin_registry().all_creators
    return {(c.name, c.plugin_version) for c in creators if c.plugin_namespace == NAMESPACE}


def _missing(needed: Mapping[str, str], present: set[tuple[str, str]]) -> dict[str, str]:
    return {name: version for name, version in needed.items() if (name, version) not in present}


def _load_library(module: ModuleType, names: list[str], rebuild: str) -> None:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    path = plugin_path(major(module))
    if path is None:
        raise EngineMismatchError(
            f"the engine needs the plugins {', '.join(names)}, which weren't built for TensorRT {major(module)} here; "
            "install this package where nvcc is, as docs/kernels.md says, or build the engine again without them: "
            f"{rebuild} --plugins none"
        )
    if not trt.get_plugin_registry().load_library(str(path)):
        raise EngineMismatchError(
            f"TensorRT {module.__version__} can't load its plugins from {path}; the log says why. "
            "Install this package anew, so that they are built for this TensorRT"
        )
