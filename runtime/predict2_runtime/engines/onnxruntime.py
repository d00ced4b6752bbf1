# SPDX-License-Identifier: Apache-2.0
"""The embedded engine: an ONNX graph run by ONNX Runtime, on the CPU or with CUDA."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Unless told before its import, ONNX Runtime reports every session to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import Graph

from . import Engine

# TF32 would round the inputs of every product to 10 bits; these engines promise float32.
_PROVIDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": 0}),
}


def open_onnxruntime(path: Path, graph: Graph, device: str) -> Engine:
    """A graph as a function from numpy arrays to numpy arrays.

    Raises:
        EngineMismatchError: this ONNX Runtime can't run the file, or not on this device.
    """
    provider = find_provider(path, device)
    options = ort.SessionOptions()
    # A server holds many sessions and runs one at a time: threads that spin while they wait would take the
    # cores from the one that works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # It would move the roundings of FP8 graphs into operators that take no FP8; other graphs have none.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises a dozen classes without a common parent
        raise EngineMismatchError(
            f"onnxruntime {ort.__version__} can't open {path}: {error}. "
            "Build the engine again with this onnxruntime"
        ) from error
    if provider[0] not in session.get_providers():  # it fell back to the CPU
        raise EngineMismatchError(
            f"onnxruntime can't use {device} for {path}: the driver or a CUDA library is missing. "
            "Mend that, or build the engine with --device cpu"
        )
    names = [output.name for output in session.get_outputs()]
    known = {tensor.name for tensor in session.get_inputs()}
    if known != set(graph.inputs):
        raise EngineMismatchError(
            f"{path} takes {sorted(known)}, its manifest says {sorted(graph.inputs)}; build it again"
        )

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


def find_provider(path: Path, device: str) -> tuple[str, dict[str, Any]]:
    """ONNX Runtime's name of what computes on a device, and its options.

    Raises:
        EngineMismatchError: this ONNX Runtime doesn't have it.
    """
    name, options = _PROVIDERS.get(device, ("", {}))
    if name not in ort.get_available_providers():
        raise EngineMismatchError(
            f"{path} was built for {device}, which onnxruntime {ort.__version__} here can't use; "
            "install onnxruntime-gpu, or build the engine with --device cpu"
        )
    return name, options
