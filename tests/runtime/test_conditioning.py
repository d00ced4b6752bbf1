# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from predict2_runtime.conditioning import cover_crop


def reference(picture, height, width):
    """The original's steps in torch: scale to cover, sizes rounded up, centre crop, truncate to bytes."""
    rows, columns = picture.shape[:2]
    scale = max(width / columns, height / rows)
    size = (int(np.ceil(scale * rows)), int(np.ceil(scale * columns)))
    unit = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    if size != (rows, columns):
        unit = torch.nn.functional.interpolate(unit, size, mode="bilinear", antialias=True)
    top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
    crop = unit[0, :, top : top + height, left : left + width]
    return (crop * 255).to(torch.uint8).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("rows", "columns", "height", "width"),
    [
        (97, 130, 64, 112),
        (300, 200, 64, 112),
        (31, 17, 64, 64),
        (64, 112, 64, 112),
        (65, 113, 64, 112),
    ],
)
def test_covers_and_crops_as_the_original_does(rows, columns, height, width):
    rng = np.random.RandomState(rows)
    picture = rng.randint(0, 256, (rows, columns, 3), dtype=np.uint8)
    ours, theirs = cover_crop(picture, height, width), reference(picture, height, width)
    assert ours.shape == (height, width, 3)
    # Both filter in float32 and then truncate: rounding of the last bit moves a value by one at most.
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_picture_of_the_right_size_comes_through_unchanged():
    picture = np.arange(256, dtype=np.uint8).repeat(3 * 16).reshape(64, 64, 3)
    assert np.array_equal(cover_crop(picture, 64, 64), picture)


def test_the_centre_is_kept():
    picture = np.zeros((64, 192, 3), np.uint8)
    picture[:, 64:128] = 255
    assert (cover_crop(picture, 64, 64) == 255).all()
