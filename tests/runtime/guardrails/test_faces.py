# SPDX-License-Identifier: Apache-2.0
import math
from itertools import pairwise

import numpy as np
import pytest

from predict2_runtime.guardrails.faces import (
    BLOCKS,
    anchor_boxes,
    decode,
    detector_input,
    distinct,
    find_faces,
    pixelate,
)
from predict2_spec.networks import FRAME_GUARD

SIZES = FRAME_GUARD.faces.anchors


def anchors_by_loops(height, width):
    """RetinaFace's anchors from its definition: (centre x, centre y, width, height)."""
    found = []
    for stride, sizes in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                for size in sizes:
                    found.append((stride * (column + 0.5), stride * (row + 0.5), size, size))
    return np.array(found)


def overlap(a, b):
    """Intersection over union of two boxes, number by number."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def offsets_of(boxes, anchors):
    """What the network has to say for anchors to become these boxes."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    shift = (centres - anchors[:, :2]) / anchors[:, 2:] / 0.1
    return np.concatenate([shift, np.log(sizes / anchors[:, 2:]) / 0.2], 1).astype(np.float32)


@pytest.mark.parametrize("size", [(64, 96), (75, 53), (1, 1)])
def test_anchors_are_retinafaces(size):
    np.testing.assert_array_equal(anchor_boxes(*size, SIZES), anchors_by_loops(*size))


def test_the_detector_sees_blue_first_and_less_the_mean():
    frames = np.array([[[[123, 117, 104], [255, 0, 1]]]], np.uint8)
    expected = [[[[0, 1 - 104]], [[0, -117]], [[0, 255 - 123]]]]
    np.testing.assert_array_equal(detector_input(frames), np.array(expected, np.float32))


def test_offsets_become_the_boxes_they_were_made_from():
    rng = np.random.RandomState(0)
    anchors = anchor_boxes(64, 64, SIZES)
    corners = rng.uniform(-20, 60, (len(anchors), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 90, corners.shape)], axis=1)
    # The offsets are rounded to float32: some 1e-6 of a box that is up to 512 wide.
    np.testing.assert_allclose(decode(offsets_of(boxes, anchors), anchors), boxes, atol=1e-3)


def test_absurd_offsets_stay_numbers():
    anchors = anchor_boxes(8, 8, SIZES)
    offsets = np.full((len(anchors), 4), np.finfo(np.float32).max)
    assert np.isfinite(decode(offsets, anchors)).all()
    assert np.isfinite(decode(-offsets, anchors)).all()


def test_overlapping_boxes_are_of_one_face():
    rng = np.random.RandomState(1)
    corners = rng.uniform(0, 100, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (300, 2))], axis=1)
    kept = []
    for number, box in enumerate(boxes):
        if all(overlap(box, boxes[other]) <= 0.4 for other in kept):
            kept.append(number)
    assert distinct(boxes) == kept
    assert 5 < len(kept) < 200
    assert distinct(boxes[:0]) == []


def test_faces_are_the_probable_ones_once_each_and_no_small_ones():
    anchors = anchor_boxes(128, 128, SIZES)
    boxes = np.zeros((len(anchors), 4))
    probability = np.zeros(len(anchors), np.float32)
    told = {
        10: ((5, 5, 35, 35), 0.8),
        11: ((6, 5, 36, 36), 0.9),  # the same face, surer
        20: ((60, 60, 90, 95), 0.71),
        21: ((60, 5, 90, 35), 0.7),  # not above the limit
        30: ((100, 5, 119, 60), 0.99),  # 19 pixels wide
    }
    boxes[:, 2:] = 1
    for number, (box, value) in told.items():
        boxes[number], probability[number] = box, value
    found = find_faces(offsets_of(boxes, anchors), probability, anchors)
    np.testing.assert_allclose(found, [told[11][0], told[20][0]], atol=1e-3)


def test_a_frame_without_faces_has_none():
    anchors = anchor_boxes(64, 64, SIZES)
    offsets, nothing = np.zeros((len(anchors), 4), np.float32), np.zeros(len(anchors), np.float32)
    assert find_faces(offsets, nothing, anchors).shape == (0, 4)


def test_of_a_crowd_the_surest_750_count():
    anchors = anchor_boxes(8 * 40, 8 * 40, ((16,), (), ()))
    boxes = np.concatenate([anchors[:, :2] * 10, anchors[:, :2] * 10 + 30], axis=1)  # far apart
    probability = np.linspace(0.71, 0.99, len(anchors), dtype=np.float32)
    found = find_faces(offsets_of(boxes, anchors), probability, anchors)
    assert len(found) == 750
    np.testing.assert_allclose(found[0], boxes[-1], rtol=1e-4)


def test_an_answer_for_other_anchors_is_refused():
    anchors = anchor_boxes(64, 64, SIZES)
    with pytest.raises(ValueError, match="5 boxes and 5 probabilities don't fit 168 anchors"):
        find_faces(np.zeros((5, 4), np.float32), np.ones(5, np.float32), anchors)


def noise(height, width):
    return np.random.RandomState(2).randint(0, 256, (height, width, 3)).astype(np.uint8)


def test_a_face_becomes_a_few_blocks_and_nothing_else_changes():
    frame = noise(70, 90)
    before = frame.copy()
    assert pixelate(frame, np.array([[10.4, 20.0, 50.2, 61.5]])) == 1
    inside = np.zeros(frame.shape[:2], bool)
    inside[20:62, 10:51] = True  # whole pixels that the box touches
    assert (frame[~inside] == before[~inside]).all()
    rows, columns = np.linspace(20, 62, BLOCKS + 1), np.linspace(10, 51, BLOCKS + 1)
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            # Blocks' edges fall between pixels, so the outermost ones are left out.
            block = frame[
                math.ceil(top) + 1 : int(bottom) - 1, math.ceil(left) + 1 : int(right) - 1
            ]
            assert len(np.unique(block.reshape(-1, 3), axis=0)) == 1
    face = frame[20:62, 10:51].reshape(-1, 3)
    assert len(np.unique(face, axis=0)) <= BLOCKS**2
    # A block is about the mean of what it hides: no pixel of a face is kept.
    assert np.abs(face.mean(0) - before[20:62, 10:51].reshape(-1, 3).mean(0)).max() < 3


def test_a_box_may_reach_outside_the_frame():
    frame = noise(40, 50)
    before = frame.copy()
    boxes = np.array([[-30.0, -10, 12, 8], [45, 30, 80, 90], [60, 5, 90, 30], [-1e9, -5, -1, 5]])
    assert pixelate(frame, boxes) == 2
    assert (frame[:8, :12] != before[:8, :12]).any()
    assert (frame[30:, 45:] != before[30:, 45:]).any()
    assert (frame[:30, 12:] == before[:30, 12:]).all()
    assert (frame[8:, :45] == before[8:, :45]).all()
