# SPDX-License-Identifier: Apache-2.0
"""A small network, as an ONNX graph and as a plan of TensorRT installed with its manifest."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from predict2_runtime.engines import open_engine
from predict2_runtime.engines.bindings import bindings
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_spec.manifest import MANIFEST_FILE, Graph, Manifest, Range

WIDTH = 64
STAGE = "vae_decoder"  # whose graphs are called first and next
# A graph's name -> the width inside it: one needs more memory to work in than the other
GRAPHS = {"first": 256, "next": 1024}
ROWS = {"first": (1, 4, 64), "next": (1, 64, 512)}  # fewest, most common, most


def graph_of(inner):
    """x [n, WIDTH] -> y [n, WIDTH], two matrix products with a ReLU between them."""
    rng = np.random.RandomState(inner)
    weights = [
        numpy_helper.from_array((rng.randn(*shape) / np.sqrt(shape[0])).astype(np.float32), name)
        for name, shape in (("a", (WIDTH, inner)), ("b", (inner, WIDTH)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("Relu", ["xa"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "b"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def build_plan(flavour, model, rows):
    """The bytes of a plan."""
    trt, log = bindings(flavour), tensorrt_log(flavour)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # or products would keep 10 bits
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *((n, WIDTH) for n in rows))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, log.errors
    return bytes(plan)


@dataclass(frozen=True)
class Installed:
    """An engine's folder and what its manifest says unless a test changes it."""

    folder: Path
    manifest: Manifest

    def write(self, **changes):
        text = replace(self.manifest, **changes).to_json()
        (self.folder / MANIFEST_FILE).write_text(text)

    def open(self, **changes):
        self.write(**changes)
        return open_engine(self.folder, STAGE)


def _install(folder, flavour, device):
    """An engine of a flavour for an architecture, with both graphs and their ONNX files."""
    graphs = {}
    for name, inner in GRAPHS.items():
        onnx.save(graph_of(inner), folder / f"{name}.onnx")
        path = folder / f"{name}.plan"
        path.write_bytes(build_plan(flavour, graph_of(inner), ROWS[name]))
        profile = {"x": Range(*((n, WIDTH) for n in ROWS[name]))}
        size = path.stat().st_size
        graphs[name] = Graph(path.name, "", size, {"x": ""}, {"y": ""}, profile=profile)
    versions = {flavour: bindings(flavour).__version__}
    manifest = Manifest(STAGE, "2b-480p-16fps", flavour, "fp32", device, "", "", versions, graphs)
    return Installed(folder, manifest)


@pytest.fixture(scope="session")
def rtx_folder(tmp_path_factory):
    """An engine of TensorRT-RTX, whose builder needs no GPU."""
    pytest.importorskip("tensorrt_rtx_bindings")
    return _install(tmp_path_factory.mktemp("rtx"), "tensorrt_rtx", "sm89+sm120")


@pytest.fixture(scope="session")
def install():
    """From a folder, a flavour and an architecture to an Installed."""
    return _install
