# SPDX-License-Identifier: Apache-2.0
"""Networks of the released widths, a block or a layer of each, as plans for what their presets serve.

    pytest -m slow -s tests/export/test_full_width_plans.py

takes some 12 GB of disk, 14 GB of memory and five minutes, and prints sizes and the seconds of each build.
"""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from predict2_export import cli
from predict2_export.build_options import BuildOptions
from predict2_export.build_progress import Phases
from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_export.profiles import free_dims, input_dims, profile
from predict2_export.recipes import _dit_graphs as dit_graphs
from predict2_export.recipes import _text_encoder_graphs as text_encoder_graphs
from predict2_export.recipes import _vae_graphs as vae_graphs
from predict2_export.to_engine import build_plan
from predict2_export.to_onnx import hollow_graphs, write_onnx
from predict2_runtime.engines import read_manifest
from predict2_spec import networks
from predict2_spec.presets import PRESETS

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="plans are built by TensorRT-RTX: the extra tensorrt-rtx"
)
OPTIONS = BuildOptions("tensorrt_rtx", ("sm89", "sm120"))
SMALL, LARGE = "2b-720p-16fps", "14b-720p-16fps"


def build_one(folder, preset, network, graph, make, graphs):
    """Lower one graph of a network in bfloat16 and build its plan; the bytes of weights and plan."""
    hollow, found = hollow_graphs(make, graphs, torch.bfloat16)
    source, target = folder / f"{network}.{graph}.onnx", folder / f"{graph}.plan"
    write_onnx(found[graph], source, hollow, synthetic_weights(hollow))
    ranges = profile(input_dims(source), free_dims(PRESETS[preset], network, graph), source.name)
    began = time.monotonic()
    build_plan(source, target, ranges, OPTIONS, Phases(lambda phases: None))
    seconds = time.monotonic() - began
    weights, plan = (path.stat().st_size for path in (folder / f"{source.name}.data", target))
    megabytes = f"{weights / 1e6:.0f} MB of weights, plan {plan / 1e6:.0f} MB"
    print(f"\n{preset} {network}/{graph}: {megabytes}, {seconds:.1f} s")  # noqa: T201
    return weights, plan


def build_block(folder, preset, network, spec):
    spec = replace(spec, num_blocks=1)
    return build_one(folder, preset, network, "main", partial(Dit, spec), partial(dit_graphs, spec))


@pytest.mark.parametrize(
    ("preset", "network", "spec"),
    [
        (SMALL, "video2world_denoiser", networks.DIT_2B_VIDEO2WORLD),
        (LARGE, "video2world_denoiser", networks.DIT_14B_VIDEO2WORLD),
        pytest.param(
            *(SMALL, "text2image_denoiser", networks.DIT_2B_TEXT2IMAGE), marks=pytest.mark.slow
        ),
        pytest.param(
            *(LARGE, "text2image_denoiser", networks.DIT_14B_TEXT2IMAGE), marks=pytest.mark.slow
        ),
    ],
)
def test_a_block_is_a_plan_for_all_that_its_preset_serves(tmp_path, preset, network, spec):
    weights, plan = build_block(tmp_path, preset, network, spec)
    # The weights are in it once, for both GPUs; kernels for them are some MB.
    assert weights <= plan < 1.1 * weights


@pytest.mark.slow
@pytest.mark.parametrize("network", ["vae_encoder", "vae_decoder"])
@pytest.mark.parametrize("graph", ["first", "next"])
def test_the_released_vae_is_four_plans(tmp_path, network, graph):
    make = partial(Vae, networks.WAN_VAE)
    weights, plan = build_one(tmp_path, SMALL, network, graph, make, partial(vae_graphs, network))
    # A first chunk needs a third of most kernels, and its plan may have no more.
    assert weights / 3 < plan < 1.5 * weights


@pytest.mark.slow
def test_a_layer_of_t5_11b_is_a_plan(tmp_path):
    spec = replace(networks.T5_11B, num_layers=1)
    weights, plan = build_one(
        tmp_path, SMALL, "text_encoder", "main",
        partial(TextEncoder, spec), partial(text_encoder_graphs, spec),
    )  # fmt: skip
    assert weights <= plan < 1.1 * weights


@pytest.mark.slow
def test_weights_beyond_2_gb_go_from_a_file_into_a_plan(tmp_path):
    stage = "video2world_denoiser"
    argv = [
        "engine", "--preset", SMALL, "--only", stage, "--random-weights", "--flavour", "tensorrt_rtx",
        "--gpu-arch", "sm89", "--checkpoints", tmp_path, "--output", tmp_path / "served" / "2b",
    ]  # fmt: skip
    assert cli.main(list(map(str, argv))) == 0
    found = read_manifest(tmp_path / "served" / "2b" / stage / "1")
    assert found.graphs["main"].size_bytes >= 2 * 1_956_413_440  # bfloat16, every parameter once
