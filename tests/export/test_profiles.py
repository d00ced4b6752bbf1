# SPDX-License-Identifier: Apache-2.0
"""A plan takes every size that its preset accepts, and is tuned for what is asked most."""

import itertools

import onnx
import pytest

from predict2_export.profiles import free_dims, input_dims, profile
from predict2_spec.errors import EngineBuildError, InvalidRequestError
from predict2_spec.limits import MAX_PROMPTS
from predict2_spec.manifest import Range
from predict2_spec.presets import PRESETS
from predict2_spec.video import PIXEL_MULTIPLE, VideoShape

SERVED = ("toy", "0.6b", "2b-720p-16fps", "14b-480p-10fps")
LONGEST = 130  # tokens; no network has positions for more than 120


def accepts(preset, task, rows, columns, frames=1):
    try:
        preset.check(task, VideoShape(frames, rows * PIXEL_MULTIPLE, columns * PIXEL_MULTIPLE))
    except InvalidRequestError:
        return False
    return True


def tasks(preset):
    return [task for task in ("text2image", "video2world") if task in preset.tasks]


@pytest.mark.parametrize("name", SERVED)
def test_every_picture_that_a_preset_accepts_is_inside_and_no_side_is_longer_than_needed(name):
    preset = PRESETS[name]
    for task in tasks(preset):
        free = free_dims(preset, f"{task}_denoiser", "main")
        sides = list(itertools.product(range(1, LONGEST), repeat=2))
        accepted = [(r, c) for r, c in sides if accepts(preset, task, r, c)]
        for which, dim in enumerate(("rows", "columns")):
            found = [side[which] for side in accepted]
            assert (free[dim][0], free[dim][2]) == (min(found), max(found))


@pytest.mark.parametrize("name", ["toy", "2b-720p-16fps", "14b-480p-10fps"])
def test_a_clip_of_any_length_that_is_accepted_is_inside(name):
    preset = PRESETS[name]
    least, best, most = free_dims(preset, "video2world_denoiser", "main")["frames"]
    clips = [f for f in range(1, 200, 4) if accepts(preset, "video2world", 1, 1, frames=f)]
    latents = [VideoShape(f, 16, 16).latent.frames for f in clips]
    assert (least, most) == (min(latents), max(latents))
    assert best == VideoShape(preset.num_frames, 16, 16).latent.frames


def test_a_plan_is_tuned_for_the_default_picture_and_for_guidance():
    preset = PRESETS["2b-720p-16fps"]
    free = free_dims(preset, "video2world_denoiser", "main")
    assert (free["rows"][1], free["columns"][1]) == (704 // 16, 1280 // 16)
    assert free["batch"] == (1, 2, 2)
    free = free_dims(preset, "text2image_denoiser", "main")
    assert (free["rows"][1], free["columns"][1]) == (768 // 16, 1360 // 16)
    assert free["frames"] == (1, 1, 1)


def test_a_distilled_network_is_tuned_for_one_sample_as_it_has_no_guidance():
    assert free_dims(PRESETS["0.6b-distilled"], "text2image_denoiser", "main")["batch"] == (1, 1, 2)


def test_the_table_bounds_sides_where_the_owner_wants_it():
    preset = PRESETS["2b-720p-16fps"]
    free = free_dims(preset, "video2world_denoiser", "main", "table")
    for dim, best in (("rows", 704), ("columns", 1280)):
        assert free[dim] == (704 // 16, best // 16, 1280 // 16)


def test_a_decoders_first_chunk_takes_pictures_and_clips():
    preset = PRESETS["2b-480p-16fps"]
    picture = free_dims(preset, "vae_decoder", "first", "table")
    clip = free_dims(preset, "vae_decoder", "next", "table")
    assert picture["latent_height"] == (432 // 8, 768 // 8, 1360 // 8)
    assert clip["latent_height"] == (432 // 8, 432 // 8, 768 // 8)
    assert picture["latent_frames"] == clip["latent_frames"] == (1, 1, 1)


def test_a_preset_of_pictures_has_a_decoder_for_them_alone():
    free = free_dims(PRESETS["0.6b"], "vae_decoder", "first", "table")
    assert free["latent_width"] == (768 // 8, 1360 // 8, 1360 // 8)
    assert free_dims(PRESETS["0.6b"], "guardrail_video", "content") == {"batch": (1, 1, 1)}


def test_all_prompts_of_a_call_fit_the_text_encoder():
    assert free_dims(PRESETS["toy"], "text_encoder", "main")["batch"][2] == MAX_PROMPTS


def test_free_dims_may_be_products():
    dims = {"cache": (1, 16, "4*latent_height"), "latents": (1, "latent_height", "2 * 3*width")}
    free = {"latent_height": (1, 2, 3), "width": (1, 1, 5)}
    assert profile(dims, free, "a graph") == {
        "cache": Range((1, 16, 4), (1, 16, 8), (1, 16, 12)),
        "latents": Range((1, 1, 6), (1, 2, 6), (1, 3, 30)),
    }


def test_a_free_dim_that_nobody_bounds_is_named():
    with pytest.raises(
        EngineBuildError, match=r"first\.onnx has a free dim '2\*depth' .* for depth"
    ):
        profile({"x": ("2*depth",)}, {"rows": (1, 2, 3)}, "first.onnx")


def test_a_network_without_an_engine_of_its_own_has_no_plan():
    with pytest.raises(EngineBuildError, match="critic has no plan"):
        free_dims(PRESETS["toy"], "critic", "main")


def test_the_inputs_of_a_file_are_read_without_its_weights(tmp_path):
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "x"], ["y"])],
        "twice",
        [value("x", onnx.TensorProto.FLOAT, ["2*rows", 3])],
        [value("y", onnx.TensorProto.FLOAT, ["2*rows", 3])],
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "x.onnx")
    assert input_dims(tmp_path / "x.onnx") == {"x": ("2*rows", 3)}
