# SPDX-License-Identifier: Apache-2.0
from dataclasses import fields

import pytest

from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import Limits
from predict2_spec.presets import PRESETS, TASKS, TOY, find_preset
from predict2_spec.requests import (
    DEFAULT_NEGATIVE_PROMPT,
    FIELD_TYPES,
    REQUESTS,
    Text2ImageRequest,
    Text2WorldRequest,
    Video2WorldRequest,
)


def test_defaults_are_the_originals():
    picture = Text2ImageRequest(prompt="a")
    clip = Video2WorldRequest(prompt="a", image=b"x")
    world = Text2WorldRequest(prompt="a")
    assert (picture.guidance, picture.negative_prompt, picture.num_steps) == (4.0, "", 35)
    assert (clip.guidance, clip.negative_prompt) == (7.0, DEFAULT_NEGATIVE_PROMPT)
    assert (world.guidance, world.image_guidance) == (7.0, 4.0)
    assert (picture.seed, picture.aspect_ratio, clip.num_conditional_frames) == (0, "16:9", 1)


def test_the_default_negative_prompt_is_the_originals_length():
    assert (len(DEFAULT_NEGATIVE_PROMPT), len(DEFAULT_NEGATIVE_PROMPT.split())) == (538, 73)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "a\0b"}, "prompt holds a zero byte"),
        ({"negative_prompt": "a\ud800"}, "negative_prompt can't be written as UTF-8"),
        ({"seed": -1}, "seed -1 must be between 0 and 4294967295"),
        ({"seed": 2**32}, "seed 4294967296 must be between"),
        ({"num_steps": 0}, "num_steps 0 must be 1 or more"),
        ({"num_steps": -5}, "num_steps -5 must be"),
        ({"guidance": float("nan")}, "guidance nan must be a number from 0 up"),
        ({"guidance": float("inf")}, "guidance inf must be"),
        ({"guidance": -1.0}, "guidance -1.0 must be"),
        ({"width": 64}, "width 64 and height 0: give both or neither"),
        ({"output_format": "bmp"}, "output_format 'bmp' is unknown; choose one of jpg, png"),
        ({"solver": "heun"}, "solver 'heun' is unknown; choose one of ab2, euler"),
    ],
)
def test_a_value_that_no_server_can_take_is_refused_by_name(values, message):
    with pytest.raises(InvalidRequestError, match=message):
        Text2ImageRequest(**{"prompt": "a ball", **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give an image or a video to go on from: neither is given"),
        ({"image": b"x", "video": b"y"}, "both are given"),
        ({"image": b"x", "num_conditional_frames": 5}, "5 needs a video; a picture has one frame"),
        ({"video": b"x", "num_conditional_frames": 3}, r"3 must be one of \(1, 5\)"),
        ({"image": b"x", "num_frames": -4}, "num_frames -4 must be positive"),
    ],
)
def test_an_input_that_cannot_be_gone_on_from_is_refused(values, message):
    with pytest.raises(InvalidRequestError, match=message):
        Video2WorldRequest(prompt="a ball", **values)


CLIP = Video2WorldRequest(prompt="a ball", video=bytes(1000), num_steps=10, guidance=9.0)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"prompt_bytes": 5}, "prompt has 6 bytes; the limit is 5. .* shorten it"),
        ({"num_steps": 9}, "num_steps 10 must be between 1 and 9"),
        ({"guidance": 8.9}, "guidance 9.0 must be between 0 and 8.9"),
        ({"media_bytes": 999}, "the input file has 1000 bytes; the limit is 999"),
        ({"num_frames": 9}, "num_frames 13 is above this server's limit of 9"),
        ({"pixels": 3839}, "width 80 x height 48 is 3840 pixels; this server's limit is 3839"),
    ],
)
def test_more_than_a_server_takes_is_refused_with_the_owners_way_out(limits, message):
    def ask(limits):
        CLIP.check(limits)
        CLIP.shape(TOY, limits)

    ask(Limits())
    [name] = limits
    with pytest.raises(InvalidRequestError, match=f"{message}.*predict2-serve --limit {name}=[.]"):
        ask(Limits(**limits))


def test_a_pictures_guidance_in_text2world_has_the_same_limit():
    request = Text2WorldRequest(prompt="a", image_guidance=60.0)
    with pytest.raises(InvalidRequestError, match=r"image_guidance 60.0 .* --limit guidance="):
        request.check()
    request.check(Limits(guidance=60.0))


def test_a_preset_holds_where_the_owner_allows_more():
    limits = Limits(num_frames=10**6, pixels=10**9)
    with pytest.raises(InvalidRequestError, match="num_frames 17 is more than preset toy makes"):
        Text2WorldRequest(prompt="a", num_frames=17).shape(TOY, limits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"aspect_ratio": "2:1"}, "aspect_ratio '2:1' is unknown; choose one of 1:1, 4:3"),
        ({"aspect_ratio": "x" * 1000}, "aspect_ratio 'x+ is unknown"),
        ({"width": 100, "height": 64}, "width 100 must be a positive multiple of 16"),
        ({"width": 1024, "height": 1024}, "1048576 pixels; preset toy takes 4096 at most"),
        ({"width": 1600, "height": 16}, "25600 pixels"),
    ],
)
def test_a_size_the_preset_cannot_make_is_refused(values, message):
    with pytest.raises(InvalidRequestError, match=message):
        Text2ImageRequest(prompt="a", **values).shape(TOY)


def test_a_side_beyond_the_networks_positions_is_refused():
    request = Text2ImageRequest(prompt="a", width=2000, height=16)
    with pytest.raises(InvalidRequestError, match=r"grid of 125 x 1 tokens; .* end at 120 x 120"):
        request.shape(find_preset("2b-720p-16fps"))


def test_a_clip_needs_frames_left_to_generate_and_no_more_than_the_preset_has():
    clip = {"prompt": "a", "video": b"x", "num_conditional_frames": 5}
    with pytest.raises(
        InvalidRequestError, match="num_frames 5 must be more than the 5 it goes on from"
    ):
        Video2WorldRequest(num_frames=5, **clip).shape(TOY)
    with pytest.raises(InvalidRequestError, match="num_frames 17 is more than preset toy makes"):
        Video2WorldRequest(num_frames=17, **clip).shape(TOY)
    assert Video2WorldRequest(num_frames=9, **clip).shape(TOY).frames == 9


def test_asking_for_another_member_of_the_family_says_which_one_is_served():
    request = Text2ImageRequest(prompt="a", model_size="14B")
    with pytest.raises(InvalidRequestError, match=r"14B was asked for, but .* preset toy"):
        request.expect(TOY)
    request.expect(find_preset("14b-720p-16fps"))
    Text2ImageRequest(prompt="a").expect(TOY)


def test_the_wire_knows_every_field_of_every_task():
    for task in TASKS:
        for field in fields(REQUESTS[task]):
            default = field.default if isinstance(field.default, str | int | float | bytes) else ""
            assert isinstance(default, FIELD_TYPES[field.name])


def test_default_requests_fit_every_preset():
    for preset in PRESETS.values():
        for ratio in ("1:1", "4:3", "3:4", "16:9", "9:16"):
            Text2ImageRequest(prompt="a", aspect_ratio=ratio).shape(preset)
        for ratio in preset.video_sizes:
            Text2WorldRequest(prompt="a", aspect_ratio=ratio).shape(preset)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-sparse")])
def test_a_sparse_preset_makes_clips_of_the_one_size_it_was_trained_for(name):
    preset = find_preset(name)
    assert preset.video2world_path.endswith(f"/model-720p-{preset.fps}fps-natten.pt")
    assert Text2WorldRequest(prompt="a").shape(preset).width == 1280
    with pytest.raises(InvalidRequestError, match="'1:1' is unknown; choose one of 16:9"):
        Text2WorldRequest(prompt="a", aspect_ratio="1:1").shape(preset)
    with pytest.raises(InvalidRequestError, match=r"width 960 x height 704 isn't what the sparse"):
        Text2WorldRequest(prompt="a", width=960, height=704).shape(preset)


def test_distilled_steps_are_for_distilled_networks():
    request = Text2ImageRequest(prompt="a", distill_steps=2)
    request.expect(find_preset("0.6b-distilled"))
    with pytest.raises(InvalidRequestError, match=r"distill_steps 2 .* which isn't distilled"):
        request.expect(find_preset("0.6b"))
    with pytest.raises(InvalidRequestError, match="distill_steps 5 must be between 1 and 4"):
        Text2ImageRequest(prompt="a", distill_steps=5)


def test_a_preset_without_video_says_what_it_serves():
    with pytest.raises(
        InvalidRequestError, match=r"0\.6b has no video2world network; it serves text2image"
    ):
        Text2WorldRequest(prompt="a").shape(find_preset("0.6b"))


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(InvalidRequestError, match="preset '3b' is unknown; choose one of toy, "):
        find_preset("3b")
