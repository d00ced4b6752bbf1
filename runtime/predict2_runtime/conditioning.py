# SPDX-License-Identifier: Apache-2.0
"""From uploaded pictures and clips to the frames a clip goes on from."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def cover_crop(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Scale a picture so that it covers height x width, then cut the centre out of it.

    As the original does: bilinear with antialiasing in floating point on [0, 1], sizes rounded up, offsets
    rounded half to even, and the result truncated (not rounded) to bytes.

    Args:
        picture: UINT8 [H, W, 3].
        height: pixels of the result.
        width: pixels of the result.

    Returns:
        UINT8 [height, width, 3].
    """
    rows, columns = picture.shape[:2]
    scale = max(width / columns, height / rows)
    new_rows, new_columns = math.ceil(scale * rows), math.ceil(scale * columns)
    unit = picture.astype(np.float32) / np.float32(255)
    if (new_rows, new_columns) != (rows, columns):
        unit = np.stack([_resize(unit[..., c], new_rows, new_columns) for c in range(3)], axis=-1)
    top, left = round((new_rows - height) / 2), round((new_columns - width) / 2)
    crop = unit[top : top + height, left : left + width]
    return (crop * np.float32(255)).clip(0, 255).astype(np.uint8)


def _resize(plane: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    # Mode F keeps floats; on bytes Pillow would round between its two passes.
    image = Image.fromarray(np.ascontiguousarray(plane), mode="F")
    return np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
