# SPDX-License-Identifier: Apache-2.0
"""Engines of torch as they are installed and opened; what they compute is tested with their networks."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from predict2_export.layouts import located
from predict2_export.recipes import recipes
from predict2_export.to_torch import FILE, describe_graph, write_safetensors
from predict2_export.toy import TRAINED
from predict2_export.verify import random_inputs, run_module
from predict2_runtime.engines import open_engine
from predict2_runtime.stages.denoiser import Denoiser
from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import MANIFEST_FILE, Manifest
from predict2_spec.presets import TOY

torch.set_num_threads(1)

STAGE = "video2world_denoiser"
RECIPES = {recipe.network: recipe for recipe in recipes(located(TOY, TRAINED), TRAINED)}


@pytest.fixture
def install(tmp_path):
    """From a dtype, and fields of the manifest that shall be others, to the folder of an engine."""

    def write(dtype=torch.float32, weights=None, **changes):
        recipe = RECIPES[STAGE]
        write_safetensors(weights or recipe.weights(), tmp_path / FILE, dtype)
        _, graphs = recipe.lowerable(dtype)
        graph = describe_graph(graphs["main"], tmp_path / FILE, dtype)
        manifest = Manifest(STAGE, "toy", "torch", "fp32", "cpu", "", "", {}, {"main": graph})
        (tmp_path / MANIFEST_FILE).write_text(replace(manifest, **changes).to_json())
        return tmp_path

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_is_called_with_numpy_arrays_or_tensors_like_any_engine(install, dtype):
    engine = open_engine(install(dtype), STAGE)
    recipe = RECIPES[STAGE]
    module = recipe.module(recipe.weights()).to(dtype)
    graph = recipe.graphs(module)["main"]
    inputs = random_inputs(graph)
    expected = run_module(graph, inputs)["velocity"]
    found = engine.on_numpy("main")(inputs)["velocity"]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < (1e-5 if dtype == torch.float32 else 0.02)
    placed = engine.graphs["main"]({k: torch.from_numpy(v) for k, v in inputs.items()})["velocity"]
    assert placed.dtype == dtype
    assert np.array_equal(placed.float().numpy(), found)


def test_the_manifest_describes_the_inputs_as_an_onnx_graphs_does(install):
    graph = open_engine(install(torch.bfloat16), STAGE).manifest.graphs["main"]
    assert graph.inputs == {
        "hidden_states": "BFLOAT16 [batch, 16, frames, 2*rows, 2*columns]",
        "timestep": "BFLOAT16 [batch, frames]",
        "encoder_hidden_states": "BFLOAT16 [batch, tokens, 64]",
        "condition_mask": "BFLOAT16 [batch, 1, frames, 2*rows, 2*columns]",
    }


def test_the_stage_makes_a_step_with_it(install):
    stage = Denoiser.open(install(), TOY, "video2world")
    rng = np.random.RandomState(0)

    def normal(*shape):
        return rng.randn(*shape).astype(np.float32)

    embeds = TOY.text_encoder.num_tokens, TOY.text_encoder.width
    inputs = {
        "latents": normal(16, 4, 4, 6),
        "previous_x0": normal(16, 4, 4, 6),
        "step": np.array([7]),
        "num_steps": np.array([35]),
        "guidance": np.array([4.0]),
        "prompt_embeds": normal(*embeds),
        "negative_prompt_embeds": np.zeros(embeds, np.float32),
        "condition_latents": normal(16, 2, 4, 6),
    }
    recipe = RECIPES[STAGE]
    graph = recipe.graphs(recipe.module(recipe.weights()))["main"]
    plain = Denoiser(TOY, "video2world", lambda inputs: run_module(graph, inputs))
    assert stage.step is not None
    found, expected = stage(inputs), plain(inputs)
    around_main = replace(stage, step=None)(inputs)
    for name in ("latents", "x0"):
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - expected[name]).max() < 1e-4 * np.abs(expected[name]).max()
        # the same operations, in the engine or around it
        assert np.abs(found[name] - around_main[name]).max() < 1e-6 * np.abs(expected[name]).max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_missed_with_the_way_out(install):
    with pytest.raises(
        EngineMismatchError,
        match=r"needs a CUDA GPU of sm90, and torch .* finds none. An engine for the CPU: predict2-export build "
        "--preset toy --only video2world_denoiser --kind torch$",
    ):
        open_engine(install(device="sm90"), STAGE)


def test_a_network_that_torch_does_not_run_is_refused(install):
    folder = install(network="guardrail_video")
    with pytest.raises(EngineMismatchError, match="no torch engine runs guardrail_video; they run"):
        open_engine(folder, "guardrail_video")


def test_weights_of_the_other_denoiser_are_refused(install):
    folder = install(weights=RECIPES["text2image_denoiser"].weights())
    with pytest.raises(
        EngineMismatchError,
        match=r"its patches are \[128, 68\], not \[128, 72\]. Build it again: predict2-export build --preset toy "
        "--only video2world_denoiser --kind torch --dtype float32$",
    ):
        open_engine(folder, STAGE)


def test_a_file_that_lacks_a_weight_is_refused(install):
    weights = RECIPES[STAGE].weights()
    del weights["blocks.3.mlp.layer2.weight"]
    with pytest.raises(EngineMismatchError, match=r"does not contain .*blocks\.3\.mlp\.layer2"):
        open_engine(install(weights=weights), STAGE)


def test_a_damaged_file_is_refused(install):
    folder = install()
    path = folder / FILE
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(EngineMismatchError, match=r"torch .* can't take .*main\.safetensors"):
        open_engine(folder, STAGE)


def test_a_preset_with_sparse_attention_is_refused(install):
    with pytest.raises(EngineMismatchError, match="its attention is sparse, which no engine"):
        open_engine(install(preset="2b-720p-16fps-sparse"), STAGE)


def test_a_manifest_of_other_inputs_is_refused(install):
    folder = install()
    manifest = open_engine(folder, STAGE).manifest
    graph = replace(manifest.graphs["main"], inputs={"z": ""})
    (folder / MANIFEST_FILE).write_text(replace(manifest, graphs={"main": graph}).to_json())
    with pytest.raises(EngineMismatchError, match=r"its manifest says \['z'\]"):
        open_engine(folder, STAGE)
