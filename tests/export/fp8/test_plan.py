# SPDX-License-Identifier: Apache-2.0
"""FP8 denoisers in TensorRT-RTX, whose parser and builder need no GPU."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

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
from predict2_spec.manifest import Range
from predict2_spec.networks import DIT_2B_VIDEO2WORLD, DIT_TOY_VIDEO2WORLD

RTX = BuildOptions("tensorrt_rtx", ("sm89", "sm120"))
pytest.importorskip("tensorrt_rtx_bindings")


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


@pytest.fixture(scope="module")
def lowered(toy_recipes, calibrations, tmp_path_factory):
    """The toy's video denoiser in bfloat16."""
    exact = next(r for r in toy_recipes if r.network == "video2world_denoiser")
    recipe = fp8_recipe(exact, calibrations[exact.network], DEFAULT_LAYERS, "")
    network, graphs = recipe.lowerable(torch.bfloat16)
    path = tmp_path_factory.mktemp("lowered") / "main.onnx"
    write_onnx(graphs["main"], path, network, recipe.weights())
    return path


@pytest.mark.parametrize("architecture", ["SM89", "SM120"])
def test_every_layer_in_fp8_is_multiplied_in_fp8(lowered, architecture):
    shapes = {name: extent.opt for name, extent in profile(64, 4, 6, 10).items()}
    script = str(Path(__file__).with_name("products.py"))
    argv = [sys.executable, script, str(lowered), architecture, json.dumps(shapes)]
    found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
    count = len(DEFAULT_LAYERS.names(DIT_TOY_VIDEO2WORLD))
    assert (found["quantize"], found["dequantize"]) == (count, 2 * count)
    # None is left that makes bfloat16 of its weight first; all others are exact.
    assert found["linears_in_fp8"] == count
    assert found["linears"] > found["linears_in_fp8"]


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
