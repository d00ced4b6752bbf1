# SPDX-License-Identifier: Apache-2.0
"""Pictures and clips as the Qwen2.5-VL family reads them: sizes, and patches in the order of its tokens."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from predict2_runtime.frames import Frames
from predict2_spec.errors import InvalidRequestError

PATCH = 14  # pixels, a side
MERGE = 2  # patches a side that make one token
DEPTH = 2  # frames that make one patch
CELL = PATCH * MERGE  # pixels a side of a token
_AREA = CELL * CELL
_PICTURE_PIXELS = (256 * _AREA, 1280 * _AREA)
_CLIP_PIXELS = (128 * _AREA, 768 * _AREA)  # of one frame
_CLIP_TOTAL_PIXELS = 8192 * _AREA  # of all pairs of frames
_MOST_ELONGATED = 200
# What the vision tower was trained with: CLIP's mean and spread of red, green and blue.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
_SPREAD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


@dataclass(frozen=True)
class Seen:
    """What the vision tower reads of several pictures, or of one clip."""

    patches: NDArray[np.float32]  # [sum of t * h * w, 3 * DEPTH * PATCH**2]
    grids: NDArray[np.int64]  # [n, (t, h, w)] in patches
    fps: float  # of a clip; 0: pictures

    @property
    def tokens(self) -> list[int]:
        """How many tokens each picture, or the clip, takes up."""
        return [int(grid.prod()) // MERGE**2 for grid in self.grids]


def picture_size(height: int, width: int) -> tuple[int, int]:
    """The height and width a picture is shown at."""
    return _fit(height, width, *_PICTURE_PIXELS)


def clip_size(num_frames: int, height: int, width: int) -> tuple[int, int]:
    """The height and width a clip is shown at: the more frames, the smaller, down to the family's least."""
    least, most = _CLIP_PIXELS
    share = _CLIP_TOTAL_PIXELS * DEPTH // num_frames
    return _fit(height, width, least, max(min(most, share), int(least * 1.05)))


def _fit(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """The multiples of CELL nearest to a size, shrunk or grown to between `least` and `most` pixels."""
    if max(height, width) > _MOST_ELONGATED * min(height, width):
        raise InvalidRequestError(
            f"{width} x {height} pixels are too elongated to be looked at: one side may be "
            f"{_MOST_ELONGATED} times the other. Crop it"
        )
    area = height * width
    rounded = (round(height / CELL) * CELL, round(width / CELL) * CELL)
    if math.prod(rounded) > most:
        shrink = math.sqrt(area / most)
        return (
            max(CELL, math.floor(height / shrink / CELL) * CELL),
            max(CELL, math.floor(width / shrink / CELL) * CELL),
        )
    if math.prod(rounded) < least:
        grow = math.sqrt(least / area)
        return math.ceil(height * grow / CELL) * CELL, math.ceil(width * grow / CELL) * CELL
    return rounded


def resize(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A UINT8 [H, W, 3] picture at another (height, width)."""
    if picture.shape[:2] == size:
        return picture
    image = Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.asarray(image)


def shown(frames: Frames, fps: float) -> Iterator[NDArray[np.uint8]]:
    """Each frame at the size it's looked at.

    Args:
        frames: UINT8 [F, H, W, 3], F at least 1.
        fps: of a clip; 0: they are pictures.

    Raises:
        InvalidRequestError: they are too elongated.
    """
    count, height, width = frames.shape[:3]
    size = clip_size(count, height, width) if fps else picture_size(height, width)
    return (resize(frame, size) for frame in frames)


def look(frames: Frames, fps: float) -> Seen:
    """What the vision tower reads of pictures (`fps` 0) or of a clip; frames UINT8 [F, H, W, 3].

    Raises:
        InvalidRequestError: they are too elongated.
    """
    pictures = shown(frames, fps)
    things = [np.stack(list(pictures))] if fps else [picture[None] for picture in pictures]
    patches, grids = zip(*map(_patchify, things), strict=True)
    return Seen(np.concatenate(patches), np.array(grids, dtype=np.int64), fps)


def _patchify(frames: Frames) -> tuple[NDArray[np.float32], tuple[int, int, int]]:
    """Normalised patches, those that make one token next to each other, and their (t, h, w)."""
    if len(frames) % DEPTH:
        frames = np.concatenate([frames, frames[-1:]])
    values: NDArray[Any] = (frames * np.float32(1 / 255) - _MEAN) / _SPREAD
    t, h, w = len(frames) // DEPTH, frames.shape[1] // PATCH, frames.shape[2] // PATCH
    blocks = values.reshape(t, DEPTH, h // MERGE, MERGE, PATCH, w // MERGE, MERGE, PATCH, 3)
    # to [t, h, w, h in the token, w in the token, colour, frame, y, x]
    return blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, -1), (t, h, w)
