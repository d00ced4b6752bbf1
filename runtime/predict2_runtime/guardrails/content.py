# SPDX-License-Identifier: Apache-2.0
"""What frames show: the picture that the content filter gets, and what its answer means."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from predict2_runtime.frames import Frames, to_unit_range

CLASSES = (
    "Safe",
    "Sexual_Content",
    "Violence",
    "Drugs",
    "Child_Abuse",
    "Hate_and_Harassment",
    "Self-Harm",
)
SAFE = 0


@dataclass(frozen=True)
class Finding:
    """Why a clip isn't safe."""

    category: str  # one of CLASSES
    frames: str  # those that show it, from 0, such as "3-7, 12"


def filter_input(frames: Frames, size: int) -> NDArray[np.float32]:
    """UINT8 RGB [F, H, W, 3] -> float32 [F, 3, size, size] in -1..1, whatever the aspect ratio was."""
    resized = [
        np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
        for frame in frames
    ]
    return np.ascontiguousarray(to_unit_range(np.stack(resized)).transpose(0, 3, 1, 2))


def judge(logits: NDArray[np.float32]) -> Finding | None:
    """Logits [F, 7] of a clip's frames -> why it isn't safe, or None. A single frame is enough.

    Of several categories the one with the most frames is named, and its frames.

    Raises:
        ValueError: the answer is for other classes.
    """
    if logits.shape[1:] != (len(CLASSES),):
        raise ValueError(f"logits {logits.shape} aren't for {len(CLASSES)} classes")
    answers = logits.argmax(axis=1)
    counts = np.bincount(answers, minlength=len(CLASSES))
    counts[SAFE] = 0
    if not counts.any():
        return None
    category = int(counts.argmax())
    return Finding(CLASSES[category], ranges(np.flatnonzero(answers == category).tolist()))


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in few words: "3-7, 12"."""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
