# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from predict2_export.toyworld.judge import agreement, read_clip, read_frame
from predict2_export.toyworld.scene import COLOURS, MOTIONS, SHAPES, Scene, draw, random_scene
from predict2_spec.presets import TOY

SIZES = sorted(set(TOY.video_sizes.values()))
SCENE = Scene("red", "circle", "grey", "left", 50.0, 24.0, 9.0)


def clip():
    return draw(SCENE, 80, 48)


def test_rendered_truth_is_read_right():
    rng = np.random.default_rng(0)
    good = 0
    for index in range(200):
        size = SIZES[index % len(SIZES)]
        scene = random_scene(rng, *size, ("train", "held-out", "unseen")[index % 3])
        good += agreement(draw(scene, *size), scene).all
    assert good >= 198


def test_truth_with_some_noise_and_blur_is_read_right():
    rng = np.random.default_rng(1)
    for index in range(40):
        size = SIZES[index % len(SIZES)]
        scene = random_scene(rng, *size)
        frames = draw(scene, *size).astype(float)
        frames[:, 1:-1] = (frames[:, :-2] + 2 * frames[:, 1:-1] + frames[:, 2:]) / 4
        noisy = (frames + rng.normal(0, 6, frames.shape)).clip(0, 255).astype(np.uint8)
        assert agreement(noisy, scene).all, scene


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("colour", "blue"), ("shape", "rectangle"), ("background", "white"), ("motion", "right")],
)
def test_a_wrong_attribute_is_found_and_the_others_stand(attribute, value):
    found = agreement(clip(), replace(SCENE, **{attribute: value}))
    for name in ("colour", "shape", "background", "motion"):
        assert getattr(found, name) == (name != attribute)


@pytest.mark.parametrize("value", [0, 16, 128, 240])
def test_a_blank_clip_shows_nothing(value):
    found = agreement(np.full((13, 48, 80, 3), value, np.uint8), SCENE)
    assert not found.colour
    assert not found.shape
    assert not found.motion


def test_noise_shows_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (13, 48, 80, 3), dtype=np.uint8)
    found = agreement(noise, SCENE)
    assert not found.shape
    assert not found.motion


def test_a_jump_is_no_motion():
    frames = clip()
    frames[1:] = frames[-1]  # first and last place are right
    found = agreement(frames, SCENE)
    assert found.look
    assert not found.path
    assert not found.motion


def test_a_rest_in_the_middle_and_a_jump_is_no_motion():
    frames = clip()
    frames[4:9] = frames[3]
    assert not agreement(frames, SCENE).motion


def test_a_clip_played_backwards_moves_the_other_way():
    assert read_clip(clip()[::-1]).motion == "right"


def test_one_melted_frame_is_enough_to_fail():
    frames = clip()
    melted = draw(replace(SCENE, shape="rectangle"), 80, 48)[6]
    frames[6] = (frames[6].astype(int) + melted) // 2
    frames[6, 30:33, 20:60] = frames[6, 24, 38]
    found = agreement(frames, SCENE)
    assert found.colour
    assert found.path
    assert not found.shape
    assert not found.motion


def test_a_shape_that_changes_is_none():
    frames = np.concatenate([clip()[:6], draw(replace(SCENE, shape="rectangle"), 80, 48)[6:]])
    assert read_clip(frames).shape == read_clip(frames).motion == ""


def test_one_melted_frame_takes_the_shape_from_a_clip():
    frames = clip()
    assert read_clip(frames).shape == SCENE.shape
    blob = draw(replace(SCENE, shape="triangle" if SCENE.shape == "circle" else "circle"), 80, 48)
    half = (frames[6].astype(int) + blob[6]) // 2  # neither the one nor the other
    frames[6] = half
    assert read_clip(frames).shape == ""
    assert not agreement(frames, SCENE).shape


def test_a_second_actor_has_no_shape():
    picture = clip()[0]
    other = draw(Scene("red", "circle", "grey", "still", 20.0, 20.0, 8.0), 80, 48, 1)[0]
    both = np.where((other != other[0, 0]).any(-1, keepdims=True), other, picture)
    assert read_frame(both).shape == ""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", COLOURS)
def test_the_centre_is_found_within_half_a_pixel(shape, colour):
    reading = read_frame(draw(Scene(colour, shape, "black", "still", 30.3, 25.8, 9.0), 64, 64, 1)[0])  # fmt: skip
    assert reading.look == (colour, shape, "black")
    assert abs(reading.x - 30.3) < 0.5
    below = 0.34 * 9.0 if shape == "triangle" else 0.0  # its centre of mass from that of its box
    assert abs(reading.y - 25.8 - below) < 0.5


def test_short_clips_are_judged_by_their_length():
    for motion in MOTIONS:
        scene = replace(SCENE, motion=motion, x=40.0)
        assert read_clip(draw(scene, 80, 48, 5)).motion == motion


def test_a_picture_needs_no_motion():
    assert agreement(clip()[:1], SCENE).all
