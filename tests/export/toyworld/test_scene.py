# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_export.toyworld.scene import (
    BACKGROUNDS,
    COLOURS,
    LOOKS,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    UNSEEN,
    Scene,
    caption,
    combinations,
    draw,
    plain_caption,
    random_scene,
    vocabulary,
)
from predict2_spec.presets import TOY

SPLITS = ("train", "held-out", "unseen")
SIZES = sorted(set(TOY.video_sizes.values()))


def scenes(seed, count=200, split="train"):
    rng = np.random.default_rng(seed)
    return [random_scene(rng, *SIZES[i % len(SIZES)], split) for i in range(count)]


def test_equal_seeds_give_equal_scenes_and_captions():
    assert scenes(7) == scenes(7) != scenes(8)
    captions = [[caption(s, np.random.default_rng(i)) for i, s in enumerate(scenes(7))] for _ in range(2)]  # fmt: skip
    assert captions[0] == captions[1]


def test_splits_share_nothing_and_cover_all():
    splits = [set(combinations(split)) for split in SPLITS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == len(LOOKS) * len(MOTIONS)
    assert {look for look, _ in combinations("unseen")} == UNSEEN
    # Every look that isn't unseen was trained with all motions but one.
    for look in set(LOOKS) - UNSEEN:
        assert len([motion for seen, motion in combinations("train") if seen == look]) == 4


@pytest.mark.parametrize("split", SPLITS)
def test_scenes_are_of_their_split(split):
    drawn = {(scene.look, scene.motion) for scene in scenes(0, 2000, split)}
    assert drawn == set(combinations(split))


@pytest.mark.parametrize("position", range(3))
def test_every_word_is_in_every_split(position):
    names = (COLOURS, SHAPES, BACKGROUNDS)[position]
    for split in SPLITS:
        assert {look[position] for look, _ in combinations(split)} == set(names)
        assert {motion for _, motion in combinations(split)} == set(MOTIONS)


def test_clips_have_the_presets_length_and_size():
    assert TOY.num_frames == NUM_FRAMES
    for width, height in SIZES:
        clip = draw(random_scene(np.random.default_rng(0), width, height), width, height)
        assert clip.shape == (NUM_FRAMES, height, width, 3)
        assert clip.dtype == np.uint8


def test_the_actor_stays_inside_the_picture():
    rng = np.random.default_rng(1)
    for index in range(300):
        width, height = SIZES[index % len(SIZES)]
        clip = draw(random_scene(rng, width, height), width, height).astype(int)
        border = np.concatenate([clip[:, 0], clip[:, -1], clip[:, :, 0], clip[:, :, -1]], axis=1)
        contrast = np.abs(clip - border[0, 0]).max()
        # a triangle's soft tip may reach half a pixel into the border
        assert np.abs(border - border[0, 0]).max() < 0.4 * contrast


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_actor_moves_as_it_is_called(motion):
    dx, dy = MOTIONS[motion]
    scene = Scene("red", "circle", "grey", motion, 32.0 - 12 * dx, 32.0 - 12 * dy, 8.0)
    clip = draw(scene, 64, 64)
    red = (clip[..., 0] > 180) & (clip[..., 1] < 90)
    places = np.array([np.argwhere(frame).mean(axis=0) for frame in red])  # row, column
    np.testing.assert_allclose(np.diff(places, axis=0), [[2 * dy, 2 * dx]] * 12, atol=0.01)


def test_a_caption_names_all_that_is_there():
    assert plain_caption(Scene("red", "circle", "grey", "left", 0, 0, 9)) == (
        "a red circle moves left on a grey background"
    )
    rng = np.random.default_rng(2)
    for scene in scenes(3):
        words = set(caption(scene, rng).split())
        assert {scene.colour, scene.background} <= words <= set(vocabulary())
        assert scene.motion == "still" or scene.motion in words
