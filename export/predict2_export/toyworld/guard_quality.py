# SPDX-License-Identifier: Apache-2.0
"""How often the toy's frame guard is right, on pictures that no training saw, decided as the server decides."""

import numpy as np
import torch
from numpy.typing import NDArray

from predict2_export.networks.content_filter import ContentFilter
from predict2_export.networks.face_detector import FaceDetector
from predict2_export.networks.frame_guard import FrameGuard
from predict2_runtime.guardrails.content import filter_input, judge
from predict2_runtime.guardrails.faces import (
    Boxes,
    anchor_boxes,
    detector_input,
    find_faces,
    overlaps,
)
from predict2_spec.networks import TOY_FRAME_GUARD

from .guard_scenes import (
    Rng,
    blobs,
    dots,
    finished,
    harmless,
    hazard,
    other_stripes,
    plain,
    shapes,
    toy,
    with_faces,
)

SIZES = ((64, 64), (48, 64), (64, 48), (48, 80), (80, 48), (96, 96))  # height, width; in turn
FOUND = 0.5  # intersection over union of a face's box and a detection
Counts = tuple[int, int]  # so many of so many


@torch.no_grad()
def detect(network: FaceDetector, picture: NDArray[np.uint8]) -> Boxes:
    """The faces [n, 4] in a picture UINT8 [H, W, 3]."""
    offsets, probability = network(torch.from_numpy(detector_input(picture[None])))
    anchors = anchor_boxes(*picture.shape[:2], network.anchors)
    return find_faces(offsets[0].numpy(), probability[0].numpy(), anchors)


@torch.no_grad()
def is_safe(network: ContentFilter, picture: NDArray[np.uint8]) -> bool:
    """Whether a picture UINT8 [H, W, 3] passes."""
    shown = filter_input(picture[None], TOY_FRAME_GUARD.content.image_size)
    return judge(network(torch.from_numpy(shown)).numpy()) is None


def measure(guard: FrameGuard, count: int, seed: int = 1) -> dict[str, Counts]:
    """Right and wrong answers in `count` pictures of each kind, a row a question."""
    rng = np.random.default_rng(seed)
    faceless = {"toy world": toy, "plain": plain, "blobs": blobs, "shapes": shapes, "dots": dots, "stripes": other_stripes}  # fmt: skip
    rows = {"faces found": _found_faces(guard.faces, rng, count)}
    for name, draw in faceless.items():
        wrong = (len(detect(guard.faces, finished(rng, draw(rng, _size(n))))) for n in range(count))
        rows[f"{name} with a face"] = sum(number > 0 for number in wrong), count
    for name, draw in {"warnings": hazard, "harmless": harmless, **faceless}.items():
        safe = (is_safe(guard.content, finished(rng, draw(rng, _size(n)))) for n in range(count))
        rows[f"{name} refused"] = sum(not one for one in safe), count
    return rows


def _found_faces(network: FaceDetector, rng: Rng, count: int) -> Counts:
    found = faces = 0
    for number in range(count):
        picture, boxes = with_faces(rng, _size(number))
        detected = detect(network, finished(rng, picture))
        faces += len(boxes)
        if len(detected):
            found += int((overlaps(np.array(boxes), detected).max(axis=1) >= FOUND).sum())
    return found, faces


def _size(number: int) -> tuple[int, int]:
    return SIZES[number % len(SIZES)]
