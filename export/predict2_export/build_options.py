# SPDX-License-Identifier: Apache-2.0
"""What its owner chooses about a plan of TensorRT, and what of it a flavour and a machine can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from predict2_kernels import plugin_path
from predict2_runtime.engines.bindings import Flavour, bindings, major
from predict2_spec.errors import EngineBuildError, InvalidRequestError
from predict2_spec.manifest import Weights

# Of our plugins: loaded when the plan is, put into the plan, or not used.
Plugins = Literal["load", "serialize", "none"]
PLUGINS: tuple[Plugins, ...] = get_args(Plugins)
OPTIMIZATION_LEVELS = range(6)  # TensorRT's own
_DEFAULT_LEVEL = 3  # TensorRT's own
FP8_SINCE = 89  # Ada; Hopper and Blackwell came after it
_OLDEST = (10, 15)  # TensorRT whose parser knows ONNX's Attention and RMSNormalization


@dataclass(frozen=True)
class BuildOptions:
    """How plans are built."""

    flavour: Flavour
    architectures: tuple[str, ...]  # of the GPUs that they are for, such as sm89
    plugins: Plugins = "none"
    refittable: bool = False  # weights can be replaced in the plan
    stripped: bool = False  # weights aren't in the plan
    version_compatible: bool = False  # runs with later versions of TensorRT too
    workspace_bytes: int | None = (
        None  # most that a kernel may take beside its tensors; None: all there is
    )
    optimization_level: int = _DEFAULT_LEVEL
    # Never allocate while a plan runs, so that its launches can be recorded.
    fixed_memory: bool = False

    @property
    def weights(self) -> Weights:
        """In the manifest's words."""
        if self.stripped:
            return "stripped, refittable" if self.refittable else "stripped"
        return "refittable" if self.refittable else "fixed"

    @property
    def device(self) -> str:
        """In the manifest's words."""
        return "+".join(self.architectures)


def this_gpu() -> str:
    """The architecture of torch's current GPU, such as sm90; empty if there is none."""
    if not torch.cuda.is_available():
        return ""
    major_number, minor_number = torch.cuda.get_device_capability()
    return f"sm{major_number}{minor_number}"


def find_architectures(flavour: Flavour, asked: tuple[str, ...], here: str) -> tuple[str, ...]:
    """The GPUs to build for.

    Args:
        flavour: what builds.
        asked: by the owner; empty: the GPU that is there.
        here: this machine's; empty if it has none.

    Raises:
        EngineMismatchError: the flavour isn't installed.
        InvalidRequestError: it can't build for these on this machine.
    """
    module = bindings(flavour)
    if flavour == "tensorrt":
        if not here:
            raise InvalidRequestError(
                "tensorrt builds for the GPU of the machine it runs on, and torch finds none here; build where the "
                "GPU is, or for RTX GPUs with --flavour tensorrt_rtx, which needs none"
            )
        if asked not in ((), (here,)):
            raise InvalidRequestError(
                f"tensorrt builds for the GPU of this machine, {here}, not for {', '.join(asked)}; leave out --gpu-arch "
                "here, and build on a machine with such a GPU too"
            )
        return (here,)
    known = rtx_architectures(module)
    wanted = asked or ((here,) if here else ())
    if not wanted or any(name not in known for name in wanted):
        said = f"{', '.join(wanted)} was given" if wanted else "no GPU is here and none was named"
        raise InvalidRequestError(
            f"{said}; tensorrt_rtx {module.__version__} builds for {', '.join(known)}: name one or more with --gpu-arch. "
            "Others need --flavour tensorrt"
        )
    return tuple(dict.fromkeys(wanted))


def check_fp8(architectures: Sequence[str]) -> None:
    """Refuse before hours of measuring what no builder makes.

    Raises:
        InvalidRequestError: a GPU can't multiply FP8.
    """
    if older := [name for name in architectures if int(name.removeprefix("sm")) < FP8_SINCE]:
        raise InvalidRequestError(
            f"--level fp8 needs GPUs from sm{FP8_SINCE} on, not {', '.join(older)}; leave it out for those"
        )


def rtx_architectures(module: Any) -> dict[str, Any]:
    """TensorRT-RTX's own constants by our names."""
    members = module.ComputeCapability.__members__
    return {name.lower(): value for name, value in members.items() if name.startswith("SM")}


def check_options(options: BuildOptions, module: ModuleType, *, timing_cache: bool, gpu: bool) -> None:  # fmt: skip
    """Refuse before any work what can't be built.

    Args:
        options: the owner's.
        module: TensorRT's bindings.
        timing_cache: the owner named a file for one.
        gpu: this machine has one.

    Raises:
        InvalidRequestError: the options contradict each other, or the flavour or machine lacks something.
        EngineBuildError: the plugins weren't built.
    """
    if options.optimization_level not in OPTIMIZATION_LEVELS:
        raise InvalidRequestError(
            f"optimization level {options.optimization_level} must be 0 to {OPTIMIZATION_LEVELS[-1]}; more is slower "
            "to build"
        )
    if options.workspace_bytes is not None and options.workspace_bytes <= 0:
        raise InvalidRequestError(
            f"a workspace of {options.workspace_bytes} bytes is none; give more, or leave it out"
        )
    if options.flavour == "tensorrt_rtx":
        _check_rtx(options, timing_cache, gpu)
    elif tuple(map(int, module.__version__.split(".")[:2])) < _OLDEST:
        raise InvalidRequestError(
            f"TensorRT {module.__version__} can't read these networks, as its parser lacks operators of theirs; install "
            f"{'.'.join(map(str, _OLDEST))} or later"
        )
    if options.plugins == "serialize" and not options.version_compatible:
        raise InvalidRequestError(
            "TensorRT puts plugins only into version-compatible plans; add --version-compatible, or load them with "
            "--plugins load"
        )
    if options.plugins != "none" and plugin_path(major(module)) is None:
        raise EngineBuildError(
            f"the plugins for TensorRT {major(module)} weren't built here; install this package where nvcc is, as "
            "docs/kernels.md says, or build without them: --plugins none"
        )


def _check_rtx(options: BuildOptions, timing_cache: bool, gpu: bool) -> None:
    refused = {
        "plugins; its parser takes the standard operators that every fused one brings: --plugins none": (
            options.plugins != "none"
        ),
        "version-compatible plans; leave out --version-compatible": options.version_compatible,
        "timing cache; leave out --timing-cache": timing_cache,
    }
    for what, asked in refused.items():
        if asked:
            raise InvalidRequestError(f"tensorrt_rtx has no {what}")
    if options.weights == "fixed":
        return
    if len(options.architectures) > 1:
        raise InvalidRequestError(
            f"tensorrt_rtx builds {options.weights} plans for one GPU at a time, not for {', '.join(options.architectures)}; "
            "name one with --gpu-arch"
        )
    if not gpu:
        raise InvalidRequestError(
            f"tensorrt_rtx needs a GPU to build {options.weights} plans, and there is none here; build them where one "
            "is, or leave out --refit and --strip-weights"
        )
