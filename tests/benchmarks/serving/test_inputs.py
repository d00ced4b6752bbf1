# SPDX-License-Identifier: Apache-2.0
"""Every model has inputs that keep its contract, in the shapes of whatever preset is served."""

import base64
import json

import numpy as np
import pytest
from tritonclient.utils import triton_to_np_dtype

from benchmarks.serving.inputs import EXAMPLES, INPUTS, arrays, model_of, write_inputs
from predict2_runtime.frames import decode_image
from predict2_runtime.tensors import parse_request
from predict2_spec.presets import PRESETS, TOY, find_preset
from predict2_spec.tensors import MODELS, TRACKING, VIDEO2WORLD_DENOISER
from predict2_spec.tracking import check_request_id

CLIPS = {"video2world", "text2world", "video2world_denoiser", "vae_encoder", "best_of_n", "critic"}


def test_every_model_of_the_spec_has_inputs():
    assert {model_of(name).name for name in INPUTS} == {*MODELS, TRACKING.name}


def assert_keeps_contract(name, found):
    contract = {tensor.name: tensor for tensor in model_of(name).inputs}
    for key, array in found.items():
        tensor = contract[key]
        assert array.dtype == triton_to_np_dtype(tensor.dtype), key
        assert array.ndim == len(tensor.dims), key
        assert all(have == want or want == -1 for have, want in zip(array.shape, tensor.dims, strict=True)), key  # fmt: skip
    assert all(tensor.optional or key in found for key, tensor in contract.items())


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_keep_their_models_contract(name):
    for seed in range(EXAMPLES):
        assert_keeps_contract(name, arrays(name, TOY, seed))


@pytest.mark.parametrize("preset", ["0.6b", "0.6b-fast-distilled", "2b-480p-16fps"])
def test_other_presets_have_inputs_too(preset):
    served = find_preset(preset)
    for name in INPUTS:
        clips = {name, name.partition("-")[2]} & CLIPS
        if served.video2world or not clips:
            assert_keeps_contract(name, arrays(name, served, 0))


@pytest.mark.parametrize("task", TOY.tasks)
def test_requests_are_ones_the_pipelines_take(task):
    for seed in range(EXAMPLES):
        found = {
            key: array.tolist() if array.dtype == np.object_ else array
            for key, array in arrays(task, TOY, seed).items()
        }
        request = parse_request(task, found)
        request.expect(TOY)
        assert request.seed == seed
        assert "moves" in request.prompt or "stays" in request.prompt


def test_pictures_have_the_size_of_clips_and_show_the_prompts_scene():
    inputs = arrays("video2world", PRESETS["2b-720p-16fps"], 1)
    picture = decode_image(inputs["image"].tobytes())
    assert picture.shape == (704, 1280, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1


def test_solver_steps_have_the_shapes_of_whole_clips():
    inputs = arrays(VIDEO2WORLD_DENOISER.name, PRESETS["2b-480p-16fps"], 0)
    assert inputs["latents"].shape == (16, 24, 54, 96)
    assert inputs["condition_latents"].shape == (16, 1, 54, 96)
    assert inputs["prompt_embeds"].shape == (512, 1024)


def test_clips_of_large_presets_are_cut_to_what_is_worth_sending():
    frames = arrays("guardrail_video", PRESETS["2b-720p-16fps"], 0)["frames"]
    assert frames.nbytes <= 64 * 2**20
    assert frames.shape[0] % 4 == 1
    assert arrays("guardrail_video", TOY, 0)["frames"].shape == (13, 48, 80, 3)


def test_an_id_to_look_for_can_be_one():
    check_request_id(arrays("tracking", TOY, 0)["request_id"][0])


def test_files_hold_the_arrays(tmp_path):
    write_inputs(TOY, {"video2world_denoiser"}, tmp_path)
    entries = json.loads((tmp_path / "video2world_denoiser.json").read_text())["data"]
    assert len(entries) == EXAMPLES
    expected = arrays("video2world_denoiser", TOY, 2)
    assert entries[2]["solver"] == {"content": ["ab2"], "shape": [1]}
    for name in ("latents", "guidance", "step"):
        written = entries[2][name]
        data = np.frombuffer(base64.b64decode(written["content"]["b64"]), expected[name].dtype)
        np.testing.assert_array_equal(data.reshape(written["shape"]), expected[name])
