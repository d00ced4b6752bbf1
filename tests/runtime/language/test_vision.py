# SPDX-License-Identifier: Apache-2.0
from functools import partial

import numpy as np
import pytest

from predict2_runtime.language.vision import clip_size, look, picture_size
from predict2_spec.errors import InvalidRequestError

RNG = np.random.RandomState(0)


def noise(count, height, width):
    return RNG.randint(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def transformers_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256 * 28**2, "longest_edge": 1280 * 28**2}
    )
    return partial(processor, return_tensors="np", input_data_format="channels_last")


@pytest.mark.parametrize(
    "size", [(56, 56), (448, 560), (704, 1280), (333, 1001), (1, 100), (2000, 14), (1500, 1500)]
)
def test_pictures_are_read_as_transformers_reads_them(transformers_processor, size):
    picture = noise(1, *size)
    expected = transformers_processor([picture[0]])
    seen = look(picture, 0)
    assert seen.grids.tolist() == expected["image_grid_thw"].tolist()
    # values up to 2.7; ours rounds 1/255, the mean and the spread to float32, theirs only some of them
    np.testing.assert_allclose(seen.patches, expected["pixel_values"], rtol=0, atol=2e-6)


def test_several_pictures_are_read_one_after_the_other(transformers_processor):
    pictures = noise(3, 500, 400)
    expected = transformers_processor(list(pictures))
    seen = look(pictures, 0)
    assert seen.grids.tolist() == expected["image_grid_thw"].tolist()
    assert seen.tokens == [expected["image_grid_thw"][0].prod() // 4] * 3
    np.testing.assert_allclose(seen.patches, expected["pixel_values"], rtol=0, atol=2e-6)


def test_a_clip_of_two_equal_frames_is_a_picture():
    frame = noise(1, 448, 560)
    picture, clip = look(frame, 0), look(np.concatenate([frame, frame]), 8.0)
    assert clip.grids.tolist() == picture.grids.tolist()
    assert np.array_equal(clip.patches, picture.patches)


def test_a_patch_of_a_clip_holds_two_frames_one_after_the_other_colour_by_colour():
    frames = noise(4, 280, 560)
    seen = look(frames, 8.0)
    assert seen.grids.tolist() == [[2, 20, 40]]
    # the 2nd pair of frames, 3rd row and 4th column of tokens, and in that token the patch below left
    token = 1 * 10 * 20 + 2 * 20 + 3
    patch = seen.patches[4 * token + 2].reshape(3, 2, 14, 14)
    rows, columns = slice(4 * 14 + 14, 4 * 14 + 28), slice(6 * 14, 6 * 14 + 14)
    for colour, (mean, spread) in enumerate([(0.48145466, 0.26862954), (0.4578275, 0.26130258), (0.40821073, 0.27577711)]):  # fmt: skip
        expected = (frames[2:, rows, columns, colour] / 255 - mean) / spread
        np.testing.assert_allclose(patch[colour], expected, rtol=0, atol=2e-6)


def test_an_odd_clip_ends_with_its_last_frame_twice():
    frames = noise(3, 280, 560)
    assert np.array_equal(
        look(frames, 8.0).patches, look(np.concatenate([frames, frames[-1:]]), 8.0).patches
    )


@pytest.mark.parametrize(
    ("frames", "tokens"),
    [(4, 2 * 768), (10, 5 * 768), (92, 8192), (93, 8192)],
)
def test_a_clip_takes_as_many_tokens_as_its_budget_allows(frames, tokens):
    height, width = clip_size(frames, 704, 1280)
    taken = (frames // 2) * height * width // 28**2
    assert 0.85 * tokens <= taken <= tokens


def test_the_frames_of_a_long_clip_keep_a_least_size():
    height, width = clip_size(768, 704, 1280)
    assert 0.85 * 128 * 28**2 <= height * width <= 1.05 * 128 * 28**2


@pytest.mark.parametrize("size", [(704, 1280), (480, 854), (300, 300), (360, 1000)])
def test_a_size_that_fits_is_kept(size):
    fitting = picture_size(*size)
    assert picture_size(*fitting) == fitting
    fitting = clip_size(92, *size)
    assert clip_size(92, *fitting) == fitting


def test_a_picture_that_is_a_line_is_refused():
    with pytest.raises(InvalidRequestError, match=r"1000 x 4 pixels are too elongated.* Crop it"):
        look(noise(1, 4, 1000), 0)
