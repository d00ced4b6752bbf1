# SPDX-License-Identifier: Apache-2.0
"""What TensorRT alone has, or RTX only where a GPU is: plugins, a timing cache, plans whose weights change."""

from dataclasses import replace
from functools import partial

import onnx
import pytest
import torch

from predict2_export.build_options import BuildOptions, this_gpu
from predict2_export.build_progress import Phases
from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.networks.dit import Dit
from predict2_export.profiles import free_dims, input_dims, profile
from predict2_export.recipes import _dit_graphs as dit_graphs
from predict2_export.to_engine import _strongly_typed, build_plan, find_plugins, fused_nodes
from predict2_export.to_onnx import hollow_graphs, write_onnx
from predict2_kernels import plugin_path
from predict2_runtime.engines.bindings import bindings, major
from predict2_runtime.engines.plugins import registered
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_spec.networks import DIT_TOY_VIDEO2WORLD
from predict2_spec.presets import TOY

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]
SPEC = replace(DIT_TOY_VIDEO2WORLD, num_blocks=1)


@pytest.fixture(scope="module")
def trt():
    pytest.importorskip("tensorrt")
    return bindings("tensorrt")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    path = tmp_path_factory.mktemp("lowered") / "main.onnx"
    network, graphs = hollow_graphs(partial(Dit, SPEC), partial(dit_graphs, SPEC), torch.bfloat16)
    write_onnx(graphs["main"], path, network, synthetic_weights(network))
    return path


@pytest.fixture
def build(trt, denoiser, tmp_path):
    """From options to a plan's bytes and its plugins."""

    def with_options(timing_cache=None, **changes):
        options = BuildOptions("tensorrt", (this_gpu(),), **changes)
        shapes = profile(
            input_dims(denoiser), free_dims(TOY, "video2world_denoiser", "main"), denoiser.name
        )
        plugins = build_plan(
            denoiser, tmp_path / "main.plan", shapes, options, Phases(lambda phases: None),
            timing_cache=timing_cache,
        )  # fmt: skip
        return (tmp_path / "main.plan").read_bytes(), plugins

    return with_options


def opened(trt, plan):
    engine = trt.Runtime(tensorrt_log("tensorrt").as_logger()).deserialize_cuda_engine(plan)
    assert engine is not None
    return engine


def test_a_plan_can_be_opened_and_its_weights_are_fixed(trt, build):
    plan, plugins = build()
    assert plugins == {}
    assert not opened(trt, plan).refittable


def test_a_refittable_plan_says_so(trt, build):
    assert opened(trt, build(refittable=True)[0]).refittable


def test_a_stripped_plan_lacks_its_weights(denoiser, build):
    weights = denoiser.with_name(f"{denoiser.name}.data").stat().st_size
    assert len(build(stripped=True)[0]) < len(build()[0]) - weights / 2


def test_plugins_of_the_graph_are_found_in_the_library(trt, build, denoiser):
    if plugin_path(major(trt)) is None:
        pytest.skip("the plugins were not built for this TensorRT")
    _, plugins = build(plugins="load")
    assert "Predict2QkNormRope" in plugins
    assert plugins.items() == fused_nodes(denoiser).items() & registered(trt)


def test_the_parser_makes_plugins_of_the_nodes_that_have_one(trt, denoiser):
    if plugin_path(major(trt)) is None:
        pytest.skip("the plugins were not built for this TensorRT")
    plugins = find_plugins(trt, denoiser, BuildOptions("tensorrt", (this_gpu(),), plugins="load"))
    log = tensorrt_log("tensorrt").as_logger()
    network = trt.Builder(log).create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(denoiser))
    kinds = [network.get_layer(index).type for index in range(network.num_layers)]
    nodes = [node.op_type for node in onnx.load(denoiser, load_external_data=False).graph.node]
    wanted = sum(name in plugins for name in nodes)
    assert kinds.count(trt.LayerType.PLUGIN_V3) == wanted > 0


def test_what_was_measured_is_kept_and_damage_is_replaced(build, tmp_path):
    path = tmp_path / "timing.cache"
    build(timing_cache=path)
    first = path.read_bytes()
    build(timing_cache=path)
    assert len(path.read_bytes()) >= len(first) > 0
    path.write_bytes(b"damaged")
    build(timing_cache=path)
    assert len(path.read_bytes()) > len(b"damaged")
