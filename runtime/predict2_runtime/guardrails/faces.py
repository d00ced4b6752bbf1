# SPDX-License-Identifier: Apache-2.0
"""Faces in frames: what the detector is shown, what its answer means, and how a face is made unrecognisable.

Limits and constants are the original's. Boxes are (left, top, right, bottom) in pixels of the frame.
"""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from predict2_runtime.frames import Frames

MEAN_BGR = (104.0, 117.0, 123.0)  # of the pictures that RetinaFace was trained on
STRIDES = (8, 16, 32)  # pixels between anchors, one for each size of FaceDetectorSpec.anchors
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2  # by which the network's offsets are scaled
CONFIDENCE = 0.7  # a face is what is more probable
MOST_CANDIDATES = 5000  # the most probable ones of a frame
OVERLAP = 0.4  # intersection over union of two boxes that are of the same face
MOST_FACES = 750  # of a frame
SMALLEST = 20  # pixels; a box with a shorter side is left alone
BLOCKS = 5  # a side; all that is left of a face
_MOST_GROWTH = 6.9  # of a box over its anchor, as a logarithm: keeps numbers finite, no face is a thousand times as large

Boxes = NDArray[np.float64]


def detector_input(frames: Frames) -> NDArray[np.float32]:
    """UINT8 RGB [F, H, W, 3] -> float32 [F, 3, H, W], BGR less its mean."""
    bgr = frames[..., ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32)
    return np.ascontiguousarray(bgr.transpose(0, 3, 1, 2))


@lru_cache(maxsize=4)  # sizes that were seen last; 1.2 MB for 1280 x 704
def anchor_boxes(height: int, width: int, sizes: tuple[tuple[int, ...], ...]) -> Boxes:
    """Centre x and y, width and height of every anchor in a picture, [A, 4], in the network's order.

    Args:
        height: of the picture, in pixels.
        width: the same.
        sizes: of the anchors, for each of STRIDES.
    """
    anchors = []
    for stride, of_stride in zip(STRIDES, sizes, strict=True):
        rows, columns = np.arange(-(-height // stride)), np.arange(-(-width // stride))
        y, x, size = np.meshgrid((rows + 0.5) * stride, (columns + 0.5) * stride, of_stride, indexing="ij")  # fmt: skip
        anchors.append(np.stack([x, y, size, size], axis=-1).reshape(-1, 4))
    together: Boxes = np.concatenate(anchors).astype(np.float64)
    return together


def decode(offsets: NDArray[np.float32], anchors: Boxes) -> Boxes:
    """The network's offsets [A, 4] from anchors [A, 4] as boxes [A, 4]."""
    raw = offsets.astype(np.float64)
    centre = anchors[:, :2] + raw[:, :2] * CENTRE_VARIANCE * anchors[:, 2:]
    half = anchors[:, 2:] * np.exp(np.minimum(raw[:, 2:] * SIZE_VARIANCE, _MOST_GROWTH)) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def find_faces(
    offsets: NDArray[np.float32], probability: NDArray[np.float32], anchors: Boxes
) -> Boxes:
    """The faces [n, 4] of one frame, the most probable first, each once.

    Args:
        offsets: of the boxes from their anchors, [A, 4].
        probability: that there is a face, [A].
        anchors: as `anchor_boxes` gives them.

    Raises:
        ValueError: the answer is for other anchors.
    """
    if not len(offsets) == len(probability) == len(anchors):
        raise ValueError(
            f"{len(offsets)} boxes and {len(probability)} probabilities don't fit {len(anchors)} anchors"
        )
    candidates = np.flatnonzero(probability > CONFIDENCE)
    order = candidates[np.argsort(-probability[candidates], kind="stable")][:MOST_CANDIDATES]
    boxes = decode(offsets[order], anchors[order])
    boxes = boxes[distinct(boxes)][:MOST_FACES]
    large: Boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= SMALLEST]
    return large


def distinct(boxes: Boxes) -> list[int]:
    """Indices of the boxes that don't overlap one before them which is kept itself."""
    kept = []
    left = np.arange(len(boxes))
    while len(left):
        first, left = left[0], left[1:]
        kept.append(int(first))
        left = left[overlaps(boxes[first : first + 1], boxes[left])[0] <= OVERLAP]
    return kept


def overlaps(these: Boxes, those: Boxes) -> Boxes:
    """Intersection over union of every one of [n, 4] boxes with every one of [m, 4], as [n, m]."""
    corner = np.maximum(these[:, None, :2], those[:, :2])
    far_corner = np.minimum(these[:, None, 2:], those[:, 2:])
    shared: Boxes = (far_corner - corner).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (these, those)]
    union: Boxes = areas[0][:, None] + areas[1] - shared
    return shared / union


def pixelate(frame: NDArray[np.uint8], boxes: Iterable[NDArray[np.float64]]) -> int:
    """Make what lies in boxes unrecognisable: BLOCKS x BLOCKS squares of one colour each.

    Args:
        frame: UINT8 [H, W, 3], changed in place; nothing outside the boxes is.
        boxes: may reach outside the frame.

    Returns:
        How many boxes lie in the frame, all or a part of them.
    """
    height, width = frame.shape[:2]
    done = 0
    for box in boxes:
        left, top = np.floor(box[:2]).clip(0, (width, height)).astype(int)
        right, bottom = np.ceil(box[2:]).clip(0, (width, height)).astype(int)
        if left < right and top < bottom:
            face = Image.fromarray(frame[top:bottom, left:right])
            small = face.resize((BLOCKS, BLOCKS), Image.Resampling.BILINEAR)
            large = small.resize(face.size, Image.Resampling.NEAREST)
            frame[top:bottom, left:right] = np.asarray(large)
            done += 1
    return done
