# SPDX-License-Identifier: Apache-2.0
"""What a request sends between models, by calculation, and what that costs from measured round trips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from predict2_runtime.schedule import solver_steps
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.presets import Preset, Task
from predict2_spec.video import LatentShape, VideoShape

_FLOAT = 4  # bytes


def latent_bytes(shape: LatentShape) -> int:
    """FP32 [16, T, h, w]."""
    return _FLOAT * LATENT_CHANNELS * shape.frames * shape.height * shape.width


def _frame_bytes(shape: VideoShape) -> int:
    return 3 * shape.frames * shape.height * shape.width


def step_bytes(preset: Preset, shape: VideoShape, task: Task) -> int:
    """In and out of one solver step: the state and the prediction both ways, two texts, and what a clip goes on from."""
    text = preset.text_encoder
    state = latent_bytes(shape.latent)
    first = latent_bytes(LatentShape(1, shape.latent.height, shape.latent.width))
    given = first if task == "video2world" else 0
    return 4 * state + 2 * _FLOAT * text.num_tokens * text.width + given


def calls(
    preset: Preset, task: Literal["text2image", "video2world"], num_steps: int
) -> tuple[int, ...]:
    """Bytes of tensors in and out of each call that a request makes; texts and single numbers count as none.

    Of a picture or a clip in the preset's default size, guided, without a prompt refiner.
    """
    width, height = preset.size(task, "16:9")
    shape = VideoShape(preset.max_frames(task), height, width)
    text = preset.text_encoder
    frames, state = _frame_bytes(shape), latent_bytes(shape.latent)
    clip = task == "video2world"
    texts = (2 if clip else 1) * _FLOAT * text.num_tokens * text.width  # pictures have no negative
    steps = [step_bytes(preset, shape, task)] * len(solver_steps(num_steps))
    found = [0, texts, *steps, state + frames]
    if clip:
        one = VideoShape(1, height, width)
        found += [_frame_bytes(one) + latent_bytes(one.latent), 2 * frames]
    return tuple(found)


@dataclass(frozen=True)
class Cost:
    """Of one call of a stage that does nothing."""

    seconds: float
    seconds_per_byte: float

    def of(self, sizes: Sequence[int]) -> float:
        """Seconds that calls of so many bytes take together."""
        return len(sizes) * self.seconds + sum(sizes) * self.seconds_per_byte


def fit(measured: Mapping[int, float]) -> Cost:
    """The line through the smallest call and, by least squares of relative errors, through the others.

    Args:
        measured: bytes of a call -> its seconds; two sizes or more.
    """
    smallest = min(measured)
    base = measured[smallest]
    more = {
        size - smallest: seconds - base for size, seconds in measured.items() if size > smallest
    }
    slope = sum(seconds / size for size, seconds in more.items()) / len(more)
    return Cost(base - slope * smallest, slope)
