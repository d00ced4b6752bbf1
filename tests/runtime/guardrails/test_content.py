# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_runtime.guardrails.content import CLASSES, Finding, filter_input, judge, ranges


def logits(*answers):
    return np.eye(len(CLASSES), dtype=np.float32)[list(answers)]


def test_a_clip_of_safe_frames_is_safe():
    assert judge(logits(0, 0, 0)) is None


def test_one_unsafe_frame_is_enough():
    assert judge(logits(0, 0, 6, 0)) == Finding("Self-Harm", "2")


def test_the_category_with_the_most_frames_is_named():
    assert judge(logits(2, 3, 3, 0, 0, 3, 1)) == Finding("Drugs", "1-2, 5")


def test_the_largest_score_decides_however_small_its_lead_is():
    scores = np.zeros((1, 7), np.float32)
    scores[0, 4] = 1e-6
    assert judge(scores) == Finding("Child_Abuse", "0")


def test_scores_for_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"logits \(2, 1\) aren't for 7 classes"):
        judge(np.zeros((2, 1), np.float32))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([], ""), ([4], "4"), ([3, 4, 5, 6, 7, 12], "3-7, 12"), ([0, 2, 3, 5], "0, 2-3, 5")],
)
def test_numbers_are_told_in_few_words(numbers, words):
    assert ranges(numbers) == words


def test_the_filter_sees_the_whole_frame_from_minus_one_to_one():
    frame = np.zeros((60, 90, 3), np.uint8)
    frame[:, 45:] = (255, 0, 255)
    seen = filter_input(np.stack([frame, 255 - frame]), 16)
    assert seen.shape == (2, 3, 16, 16)
    assert seen.dtype == np.float32
    left, right = seen[0, :, :, :4], seen[0, :, :, -4:]
    assert (left == -1).all()
    assert (right[0] == 1).all()
    assert (right[1] == -1).all()
    np.testing.assert_array_equal(seen[1], -seen[0])


def test_a_picture_is_shrunk_without_aliasing():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # finer than the filter's pixels: seen as grey
    assert np.abs(filter_input(stripes[None], 16)[..., 2:-2]).max() < 0.05
