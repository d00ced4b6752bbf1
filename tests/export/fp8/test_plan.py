# SPDX-License-Identifier: Apache-2.0
"""FP8 denoisers in TensorRT-RTX, whose parser and builder need no GPU."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from predict2_export.build_options import BuildOptions
from predict2_export.build_progress import watched
from predict2_export.checkpoint.fp8 import quantized
from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.fp8.layers import DEFAULT_LAYERS, Fp8Layers
from predict2_export.fp8.recipe import fp8_recipe
from predict2_export.networks.dit import Dit
from predict2_export.networks.fp8 import quantize_linears
from predict2_export.recipes import _dit_graphs as dit_graphs
from predict2_export.to_engine import build_plan
from predict2_export.to_onnx import hollow_graphs, write_onnx
from predict2_runtime.engines.bindings import bindings
from predict2_spec.manifest import Range
from predict2_spec.networks import DIT_2B_VIDEO2WORLD, DIT_TOY_VIDEO2WORLD

RTX = BuildOptions("tensorrt_rtx", ("sm89", "sm120"))
trt = pytest.importorskip("tensorrt_rtx_bindings")


def profile(text_width, frames, height, width):
    shapes = {
        "hidden_states": (2, 16, frames, height, width),
        "timestep": (2, frames),
        "encoder_hidden_states": (2, 32, text_width),
        "condition_mask": (2, 1, frames, height, width),
    }
    return {name: Range(shape, shape, shape) for name, shape in shapes.items()}


def built(folder, name, shapes):
    with watched("test", lambda line: None) as phases:
        build_plan(folder / name, folder / "main.plan", shapes, RTX, phases)
    return (folder / "main.plan").stat().st_size


def test_the_toys_video_denoiser_is_built_in_bfloat16(tmp_path, toy_recipes, calibrations):
    exact = next(r for r in toy_recipes if r.network == "video2world_denoiser")
    recipe = fp8_recipe(exact, calibrations[exact.network], DEFAULT_LAYERS, "")
    network, graphs = recipe.lowerable(torch.bfloat16)
    write_onnx(graphs["main"], tmp_path / "main.onnx", network, recipe.weights())
    parsed = layers_of(tmp_path / "main.onnx")
    count = len(DEFAULT_LAYERS.names(DIT_TOY_VIDEO2WORLD))
    assert parsed.count(trt.LayerType.QUANTIZE) == count
    assert parsed.count(trt.LayerType.DEQUANTIZE) == 2 * count
    assert built(tmp_path, "main.onnx", profile(64, 4, 6, 10)) > 1e6


def test_a_block_of_the_2b_denoiser_is_built_at_full_width(tmp_path):
    spec = replace(DIT_2B_VIDEO2WORLD, num_blocks=1)
    names = Fp8Layers(kept_blocks=0).names(spec)

    def make():
        return quantize_linears(Dit(spec), names)

    network, graphs = hollow_graphs(make, partial(dit_graphs, spec), torch.bfloat16)
    with torch.device("meta"):
        weights = synthetic_weights(Dit(spec), dtype=torch.bfloat16)
    write_onnx(graphs["main"], tmp_path / "main.onnx", network, quantized(weights, dict.fromkeys(names, 0.02)))  # fmt: skip
    # The block's linears are a byte a weight, all else two.
    linears = sum(network.get_submodule(name).weight.numel() for name in names)
    others = sum(value.numel() for value in network.parameters()) - linears
    assert (tmp_path / "main.onnx.data").stat().st_size == pytest.approx(linears + 2 * others, rel=0.05)  # fmt: skip
    assert built(tmp_path, "main.onnx", profile(1024, 2, 16, 16)) > linears


def layers_of(path):
    """The kinds of the layers that TensorRT's parser makes of a file."""
    module = bindings("tensorrt_rtx")
    logger = module.Logger(module.Logger.ERROR)
    network = module.Builder(logger).create_network(0)
    parser = module.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
    return [network.get_layer(index).type for index in range(network.num_layers)]
