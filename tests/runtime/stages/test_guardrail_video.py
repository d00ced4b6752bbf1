# SPDX-License-Identifier: Apache-2.0
"""The frame guard on the toy's real engine, and on engines that break."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from predict2_export.build import build
from predict2_export.toy import TRAINED
from predict2_export.toyworld import guard_scenes
from predict2_export.toyworld.scene import draw, random_scene
from predict2_runtime.engines import read_manifest
from predict2_runtime.stages.guardrail_video import BATCH, GuardrailVideo, largest_shapes
from predict2_spec.errors import InvalidRequestError
from predict2_spec.guardrails import UNDECIDED, Verdict
from predict2_spec.presets import TOY, find_preset

torch.set_num_threads(1)

TEMPLATES = Path(__file__).parents[3] / "model_repository"
STAGE = "guardrail_video"
NUM_FRAMES = 2 * BATCH + 1  # batches of the largest size and of the smallest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "toy"
    build(TOY, TRAINED, TEMPLATES, output, lambda line: None, only=STAGE)
    return output / STAGE / "1"


@pytest.fixture(scope="module")
def stage(folder):
    return GuardrailVideo.open(folder, TOY)


def look(stage, frames, **more):
    before = frames.copy()
    answer = stage({"frames": frames, **more})
    assert np.array_equal(frames, before)  # what was sent is left alone
    assert answer["frames"].shape == frames.shape
    assert answer["frames"].dtype == np.uint8
    return answer["frames"], Verdict.from_json(answer["verdict"])


@pytest.fixture(scope="module")
def face_clip():
    """A face that moves over a grey background, and its boxes."""
    frames, boxes = [], []
    for number in range(NUM_FRAMES):
        picture = np.full((48, 80, 3), 128, np.float32)
        rng = np.random.default_rng(3)  # the same face in all frames
        box = guard_scenes.draw_face(rng, picture, 30.0)
        frames.append(np.roll(picture, number - 4, axis=1).astype(np.uint8))
        boxes.append((box[0] + number - 4, box[1], box[2] + number - 4, box[3]))
    return np.stack(frames), boxes


@pytest.fixture(scope="module")
def warning_clip():
    """A clip of the toy world with two frames of warning stripes."""
    rng = np.random.default_rng(0)
    frames = draw(random_scene(rng, 64, 64), 64, 64, NUM_FRAMES)
    for number in (5, 6):
        frames[number] = guard_scenes.hazard(rng, (64, 64)).astype(np.uint8)
    return frames


def test_the_engine_agrees_with_torch(folder):
    manifest = read_manifest(folder)
    assert manifest.verification.keys() == {"faces", "content"}
    assert all(result.cosine > 0.99999 for result in manifest.verification.values())


def test_a_face_comes_back_as_blocks_and_all_around_it_untouched(stage, face_clip):
    frames, boxes = face_clip
    shown, verdict = look(stage, frames, subject=["clip"])
    assert verdict == Verdict(True, "clip", "faces", faces=NUM_FRAMES)
    for before, after, (left, top, right, bottom) in zip(frames, shown, boxes, strict=True):
        middle = np.s_[int(top) + 8 : int(bottom) - 8, int(left) + 8 : int(right) - 8]
        assert len(np.unique(before[middle].reshape(-1, 3), axis=0)) > 25
        assert len(np.unique(after[middle].reshape(-1, 3), axis=0)) <= 25
        around = np.ones(before.shape[:2], bool)
        # A box that shares half of its union with the face reaches less than half of it beyond.
        wide, tall = (right - left) / 2, (bottom - top) / 2
        around[max(int(top - tall), 0) : int(bottom + tall), max(int(left - wide), 0) : int(right + wide)] = False  # fmt: skip
        assert around.any()
        assert np.array_equal(before[around], after[around])


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (80, 48)])
def test_a_clip_of_the_toy_world_passes_untouched(stage, size):
    scene = random_scene(np.random.default_rng(1), size[1], size[0])
    frames = draw(scene, size[1], size[0])
    shown, verdict = look(stage, frames)
    assert verdict == Verdict(True, "clip", "faces")
    assert np.array_equal(shown, frames)


def test_a_clip_with_a_warning_is_refused_and_nothing_of_it_is_shown(stage, warning_clip):
    shown, verdict = look(stage, warning_clip)
    assert verdict == Verdict(False, "clip", "content", "Violence", "5-6")
    assert not shown.any()


def test_a_single_frame_is_a_picture(stage, warning_clip):
    assert look(stage, warning_clip[:1])[1] == Verdict(True, "picture", "faces")
    assert look(stage, warning_clip[5:6])[1].entry == "0"
    assert look(stage, warning_clip[:1], subject=["clip"])[1].subject == "clip"


def failing(inputs):
    raise RuntimeError("out of memory")


def spoilt(engine, value):
    """The engine with one number of its answer replaced."""

    def run(inputs):
        answer = {name: values.copy() for name, values in engine(inputs).items()}
        for values in answer.values():
            values.reshape(-1)[-1] = value
        return answer

    return run


def short(engine):
    """The engine with an answer for all frames but the last."""
    return lambda inputs: {name: values[:-1] for name, values in engine(inputs).items()}


@pytest.mark.parametrize("check", ["content", "faces"])
@pytest.mark.parametrize(
    "broken",
    [lambda engine: failing, lambda engine: spoilt(engine, np.nan), lambda engine: spoilt(engine, np.inf), short,
     lambda engine: lambda inputs: {}],
    ids=["raises", "NaN", "infinite", "a frame short", "says nothing"],
)  # fmt: skip
def test_what_an_engine_cant_decide_is_refused(stage, face_clip, caplog, check, broken):
    stage = replace(stage, **{check: broken(getattr(stage, check))})
    with caplog.at_level(logging.ERROR):
        shown, verdict = look(stage, face_clip[0])
    assert verdict == Verdict(False, "clip", check, UNDECIDED)
    assert not shown.any()
    assert f"guardrail {check} failed on a clip" in caplog.text


def test_another_presets_engine_is_refused_at_its_answer(stage, face_clip):
    faces = replace(stage.spec.faces, anchors=((16,), (64, 128), (256, 512)))
    other = replace(stage, spec=replace(stage.spec, faces=faces))
    assert look(other, face_clip[0])[1].category == UNDECIDED


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"frames": np.zeros((0, 64, 64, 3), np.uint8)}, "hold no pixels"),
        ({"frames": np.zeros((1, 64, 65, 3), np.uint8)}, "65 x 64 pixels are more than .*: 1 frame of 4096 pixels or 13 frames of 4096 pixels at most"),
        ({"frames": np.zeros((14, 16, 16, 3), np.uint8)}, "14 frames of 16 x 16 pixels"),
        ({"frames": np.zeros((1, 64, 64, 3), np.uint8), "subject": ["film"]}, r"\['film'\] is none of prompt"),
    ],
)  # fmt: skip
def test_what_isnt_frames_is_refused_by_name(stage, inputs, message):
    with pytest.raises(InvalidRequestError, match=message):
        stage(inputs)


@pytest.mark.parametrize("name", ["2b-480p-16fps", "0.6b"])
def test_whatever_a_preset_makes_is_looked_at_and_no_more(stage, name):
    preset = find_preset(name)
    stage = replace(stage, shapes=largest_shapes(preset), content=failing)
    for sizes, most in ((preset.image_sizes, 1), (preset.video_sizes, preset.num_frames)):
        for width, height in sizes.values():
            frames = np.broadcast_to(np.uint8(0), (most, height, width, 3))
            assert look(stage, frames)[1].category == UNDECIDED
    larger_than_any_clip = np.broadcast_to(np.uint8(0), (2, 1024, 1024, 3))
    with pytest.raises(InvalidRequestError, match="2 frames of 1024 x 1024 pixels are more"):
        stage({"frames": larger_than_any_clip})
