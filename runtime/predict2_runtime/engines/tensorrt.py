# SPDX-License-Identifier: Apache-2.0
"""The production engine: plans of TensorRT, or of TensorRT-RTX, on an NVIDIA GPU. One code path drives both."""

import logging
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import Manifest

from . import InstalledEngine
from .bindings import Flavour, bindings
from .fit import check_architecture, check_names, check_plugins, check_version, check_weights
from .memory import Memory
from .plan import Plan
from .plugins import load_plugins
from .tensorrt_log import tensorrt_log
from .torch_arrays import placement

if TYPE_CHECKING:
    import tensorrt as trt


_LOG = logging.getLogger(__name__)


def open_tensorrt(folder: Path, manifest: Manifest, flavour: Flavour) -> InstalledEngine:
    """Put the plans of an installed engine onto torch's current GPU.

    Args:
        folder: where their files are.
        manifest: the engine's.
        flavour: what built them.

    Raises:
        EngineMismatchError: they don't fit this TensorRT, this GPU or their manifest, or a file is damaged. The message
            has the command that builds them again.
    """
    device = find_gpu(manifest, flavour)
    module = bindings(flavour)
    if not manifest.plugins_inside:
        load_plugins(module, manifest.plugins, manifest.rebuild_command)
    if manifest.verification.keys() != manifest.graphs.keys():
        _LOG.warning("%s was never compared with torch: predict2-export verify does that", folder)
    memory = Memory(device)
    graphs = {}
    for name, graph in manifest.graphs.items():
        engine = read_plan(folder / graph.file, manifest, flavour)
        where = f"{manifest.network}/{name}"
        plan = Plan(where, flavour, engine, memory, manifest.cuda_graphs)
        check_names(manifest, name, list(plan.signature.inputs))
        graphs[name] = plan
    return InstalledEngine(manifest, dict(graphs), placement(device))


def find_gpu(manifest: Manifest, flavour: Flavour) -> torch.device:
    """The GPU that a plan runs on.

    Raises:
        EngineMismatchError: there is none of its architecture, or this TensorRT can't run it by what its manifest says.
    """
    check_version(manifest, bindings(flavour).__version__)
    check_weights(manifest)
    check_plugins(manifest)
    if not torch.cuda.is_available():
        why = "there is none, or its driver is too old"
        if torch.version.cuda is None:
            why = "it was built without CUDA; install one for this machine's"
        raise EngineMismatchError(
            f"{manifest.network} needs a CUDA GPU of {manifest.device}, and torch {torch.__version__} finds none: {why}. "
            f"An engine for the CPU: predict2-export build --preset {manifest.preset} --only {manifest.network}"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    check_architecture(manifest, f"sm{major}{minor}")
    return device


def read_plan(path: Path, manifest: Manifest, flavour: Flavour) -> "trt.ICudaEngine":
    """Deserialize a plan.

    Raises:
        EngineMismatchError: it is damaged or doesn't fit; with TensorRT's own words.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = bindings(flavour)
    log = tensorrt_log(flavour)
    log.errors.clear()
    runtime = trt.Runtime(log.as_logger())
    # a plan with code for the host in it: the part of TensorRT that it needs, or its plugins
    runtime.engine_host_code_allowed = manifest.version_compatible or manifest.plugins_inside
    reasons, engine = [], None
    if not path.stat().st_size:
        reasons.append("it is empty")  # and nothing can be mapped
    else:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            if flavour == "tensorrt_rtx":
                reasons += _reasons_against(trt, runtime, plan)
            if not reasons:
                engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineMismatchError(
            f"{flavour} can't open {path}: {'; '.join([*reasons, *log.errors]) or 'it does not say why'}. The file is "
            f"damaged, or was built for another machine; build it again: {manifest.rebuild_command}"
        )
    return engine


def _reasons_against(of_rtx: Any, runtime: Any, plan: mmap.mmap) -> list[str]:
    """Why RTX can't run a plan, as its header tells; empty when it can. The other flavour has no such function."""
    validity, reasons = runtime.get_engine_validity(plan)
    if validity != of_rtx.EngineValidity.INVALID:
        return []
    known = of_rtx.EngineInvalidityDiagnostics.__members__.items()
    return [name for name, reason in known if int(reasons) & int(reason)] or ["INVALID"]
