# SPDX-License-Identifier: Apache-2.0
"""The toy's frame guard: what it is trained on, that it trains, and how good the shipped one is."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from predict2_export.networks.face_detector import FaceDetector
from predict2_export.networks.frame_guard import FrameGuard
from predict2_export.recipes import recipes
from predict2_export.released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_FILES, GUARD_TOWER
from predict2_export.toy import TRAINED, guard_files
from predict2_export.toyworld import guard_scenes
from predict2_export.toyworld.guard import face_loss, main, targets, train_content, train_faces
from predict2_export.toyworld.guard_quality import measure
from predict2_runtime.guardrails.faces import anchor_boxes, decode
from predict2_spec.networks import TOY_FRAME_GUARD
from predict2_spec.presets import TOY

torch.set_num_threads(1)

SHIPPED = TRAINED / TOY.frame_guard_path
ANCHORS = TOY_FRAME_GUARD.faces.anchors


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def guard():
    (recipe,) = (r for r in recipes(TOY, TRAINED) if r.network == "guardrail_video")
    return recipe.module(recipe.weights())


def test_a_face_lies_in_its_box_and_the_rest_stays(rng):
    for width in (20, 33, 60):
        picture = np.full((96, 96, 3), 255, np.float32)
        left, top, right, bottom = guard_scenes.draw_face(rng, picture, width)
        assert right - left == pytest.approx(width)
        assert left >= 0 <= top
        assert right <= 96 >= bottom
        drawn = (picture != 255).any(axis=2)
        # Hair may reach a sixth of the face beyond it.
        margin = width / 6 + 2
        drawn[max(int(top - margin), 0) : int(bottom + margin), max(int(left - margin), 0) : int(right + margin)] = False  # fmt: skip
        assert not drawn.any()


def test_pictures_are_what_a_clip_may_hold(rng):
    for make in (*guard_scenes.NEITHER, guard_scenes.hazard, guard_scenes.harmless):
        picture = guard_scenes.finished(rng, make(rng, (48, 80)))
        assert picture.shape == (48, 80, 3)
        assert picture.dtype == np.uint8


def test_warnings_are_yellow_and_black_and_fill_most_of_the_picture(rng):
    for _ in range(20):
        picture = guard_scenes.hazard(rng, (64, 64))
        yellow = (picture[..., 0] > 180) & (picture[..., 2] < 90)
        black = picture.max(axis=2) < 60
        assert yellow.mean() > 0.2
        assert black.mean() > 0.2


def test_every_face_has_an_anchor_that_tells_where_it_is(rng):
    anchors = anchor_boxes(64, 96, ANCHORS)
    boxes = [(3.0, 4.0, 25.0, 30.0), (40.0, 5.0, 90.0, 62.0)]
    hits, offsets = targets(anchors, boxes)
    told = decode(offsets[hits], anchors[hits])
    distance = np.abs(told[:, None] - np.array(boxes)).max(axis=2)
    assert (distance.min(axis=1) < 1e-3).all()  # float32 offsets
    assert (distance.min(axis=0) < 1e-3).all()
    assert 2 <= hits.sum() < 60
    assert not targets(anchors, [])[0].any()


def test_scores_and_places_both_count(rng):
    torch.manual_seed(0)
    network = FaceDetector(TOY_FRAME_GUARD.faces)
    pictures = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    loss = face_loss(network, pictures, [[(10.0, 10.0, 40.0, 45.0)], []])
    loss.backward()
    for head in (network.ClassHead, network.BboxHead):
        assert head[0].conv1x1.weight.grad.abs().max() > 0


def test_equal_seeds_train_equal_weights():
    for train in (train_faces, train_content):
        one, again, other = (train(seed, 3).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(one[key], again[key]) for key in one)
        assert not all(torch.equal(one[key], other[key]) for key in one)


def test_the_command_writes_the_files_and_says_how_good_they_are(tmp_path, capsys):
    argv = ["--face-steps", "2", "--content-steps", "2", "--pictures", "3"]
    assert main([*argv, "--output", str(tmp_path)]) == 0
    assert "toy world with a face: " in capsys.readouterr().out
    for file in GUARD_FILES:
        assert (tmp_path / TOY.frame_guard_path / file).is_file()


def test_the_shipped_files_are_small_and_have_the_released_names():
    assert sum((SHIPPED / file).stat().st_size for file in GUARD_FILES) < 600_000
    faces = torch.load(SHIPPED / GUARD_FACES, weights_only=True)
    assert {"body.conv1.weight", "fpn.merge1.1.running_var", "BboxHead.2.conv1x1.bias"} <= faces.keys()  # fmt: skip
    classifier = torch.load(SHIPPED / GUARD_CLASSIFIER, weights_only=True)
    assert {"network.layers.0.weight", "network.layers.6.bias"} <= classifier["model"].keys()
    tower = load_file(SHIPPED / GUARD_TOWER)
    assert "vision_model.head.attention.in_proj_weight" in tower


def test_a_guard_is_written_and_read_without_loss(guard):
    again = guard_files(guard.state_dict())
    assert all((SHIPPED / file).read_bytes() == data for file, data in again.items())
    assert isinstance(guard, FrameGuard)


def test_the_shipped_guard_finds_faces_and_warnings_and_lets_the_toy_world_pass(guard):
    rows = measure(guard, 60, seed=2)
    # Limits for finding breaks; what thousands of pictures gave is in the model card.
    assert rows["faces found"][0] >= 0.85 * rows["faces found"][1]
    assert rows["warnings refused"][0] >= 57
    assert rows["toy world with a face"][0] == 0
    assert rows["toy world refused"][0] == 0
    assert rows["harmless refused"][0] <= 1
