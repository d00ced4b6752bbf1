# SPDX-License-Identifier: Apache-2.0
"""The embedded engine: an ONNX graph run by ONNX Runtime, on the CPU unless it was built for CUDA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import Graph

from . import Engine


def open_onnxruntime(path: Path, graph: Graph) -> Engine:
    """A graph as a function from numpy arrays to numpy arrays.

    Raises:
        EngineMismatchError: this ONNX Runtime can't run the file.
    """
    options = ort.SessionOptions()
    # A server holds many sessions and runs one at a time: threads that spin while they wait would take the
    # cores from the one that works.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen classes without a common parent
        raise EngineMismatchError(
            f"onnxruntime {ort.__version__} can't open {path}: {error}. "
            "Build the engine again with this onnxruntime"
        ) from error
    names = [output.name for output in session.get_outputs()]
    known = {tensor.name for tensor in session.get_inputs()}
    if known != set(graph.inputs):
        raise EngineMismatchError(
            f"{path} takes {sorted(known)}, its manifest says {sorted(graph.inputs)}; build it again"
        )

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run
