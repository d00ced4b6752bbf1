# SPDX-License-Identifier: Apache-2.0
"""A network as ONNX files: opset 23, weights in a file beside the graph under their own names, checked.

A graph needs the shapes of the weights, not their values. So it is traced through a module without storage,
and the weights go from the checkpoint to the file one by one: a network of any size is lowered in the memory
of its largest tensor.
"""

import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor, from_torch_dtype
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_spec.errors import Predict2Error

from .checkpoint.stored import StoredTensor
from .checkpoint.wording import amount
from .networks.export_graph import ExportGraph
from .networks.onnx_functions import add_functions

OPSET = 23  # Attention and RMSNormalization as single operators
Report = Callable[[str], None]  # is told one line of progress
_ALIGNMENT = 65536  # of large tensors in the file, so that engines can map them
_TOLD_EVERY = 2**30  # bytes of weights between two lines of progress


def quiet_exporter() -> None:
    """Keep torch's notes about itself (torchvision is missing, an API will go) out of a command's progress."""
    for name in ("torch.onnx", "torch._export"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|onnxscript|copyreg")


def hollow_graphs(
    make: Callable[[], nn.Module],
    graphs: Callable[[nn.Module], dict[str, ExportGraph]],
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, dict[str, ExportGraph]]:
    """A network whose parameters have shapes and no storage, and its graphs.

    Args:
        make: the network's constructor.
        graphs: its graphs, examples included.
        dtype: of its parameters.
    """
    with torch.device("meta"):
        module = make().to(dtype).eval().requires_grad_(False)
    # Tables that a network makes itself are real and stay so.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for part in module.modules():
            for name, value in part.named_parameters(recurse=False):
                empty = torch.empty(value.shape, dtype=value.dtype)
                setattr(part, name, nn.Parameter(empty, requires_grad=False))
        return module, graphs(module)


def check_disk(folder: Path, network: nn.Module, num_graphs: int) -> None:
    """Refuse to start what the disk has no room for: each graph has a copy of the weights.

    Raises:
        Predict2Error: it has not.
    """
    needed = num_graphs * sum(p.numel() * p.element_size() for p in network.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise Predict2Error(
            f"{folder} has {amount(free)} free and the ONNX files take {amount(needed)}; make room or choose another --output"
        )


def write_onnx(
    graph: ExportGraph,
    path: Path,
    network: nn.Module,
    weights: Mapping[str, StoredTensor],
    report: Report = lambda line: None,
) -> None:
    """Lower `graph` to `path`; its weights go to `path` + `.data`, in the dtype of the network's parameters.

    The graph isn't optimised here: folding would rename weights, and every engine builder folds by itself.

    Args:
        graph: one graph of the network, which may be without storage.
        path: file to write.
        network: what the graph's module is or has in it.
        weights: the values of the network's parameters, by name.
        report: is told how far the writing of the weights is.
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
    model: ir.Model = program.model
    # A program's weights are no parameters, and it is lowered in float32.
    dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
    add_functions(model, from_torch_dtype(dtype))
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: half of the file, and paths of this machine
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for name, parameter in graph.module.named_parameters():
        if initializer := model.graph.initializers.get(name):
            initializer.const_value = _lazy(name, weights[names[id(parameter)]], parameter.dtype)
    data = f"{path.name}.data"
    ir.save(
        model,
        path,
        external_data=data,
        callback=_progress(report),
        max_workers=1,
        alignment=_ALIGNMENT,
    )
    onnx.checker.check_model(str(path), full_check=False)


def _lazy(name: str, stored: StoredTensor, dtype: torch.dtype) -> ir.LazyTensor:
    """A tensor that is read when it is written, and not kept."""
    return ir.LazyTensor(
        lambda: TorchTensor(stored.load().to(dtype).contiguous(), name),
        dtype=from_torch_dtype(dtype),
        shape=ir.Shape(stored.shape),
        name=name,
    )


def _progress(report: Report) -> Callable[[Any, Any], None]:
    told = 0

    def tell(tensor: Any, place: Any) -> None:
        nonlocal told
        if place.offset >= told + _TOLD_EVERY:
            told = place.offset
            report(f"{place.index} of {place.total} tensors, {told / 1e9:.1f} GB written")

    return tell


def describe(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Inputs and outputs of an ONNX file: name -> dtype and dims, as text."""
    graph = onnx.load(str(path), load_external_data=False).graph
    inputs = {value.name: _describe(value) for value in graph.input}
    return inputs, {value.name: _describe(value) for value in graph.output}


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type)} [{', '.join(dims)}]"
