# SPDX-License-Identifier: Apache-2.0
"""A torch module as an ONNX file: opset 23, weights in a file beside it under their own names, checked."""

from pathlib import Path

import onnx
import torch

from .networks.export_graph import ExportGraph

OPSET = 23  # Attention and RMSNormalization as single operators


def write_onnx(graph: ExportGraph, path: Path) -> None:
    """Lower `graph` to `path`; its weights go to `path` + `.data`.

    The graph isn't optimised here: folding would rename weights, and every engine builder folds by itself.
    """
    with torch.no_grad():
        program = torch.onnx.export(
            graph.module,
            graph.args,
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.input_names,
            output_names=graph.output_names,
            dynamic_shapes=graph.dynamic_shapes,
            optimize=False,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: half of the file, and paths of this machine
    program.save(str(path), external_data=True)
    onnx.checker.check_model(str(path), full_check=False)


def describe(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Inputs and outputs of an ONNX file: name -> dtype and dims, as text."""
    graph = onnx.load(str(path), load_external_data=False).graph
    inputs = {value.name: _describe(value) for value in graph.input}
    return inputs, {value.name: _describe(value) for value in graph.output}


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(dims)}]"
