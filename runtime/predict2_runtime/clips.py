# SPDX-License-Identifier: Apache-2.0
"""Uploaded clips for those who only look at them: frames evenly taken, and shrunk while decoding."""

from typing import Any

import numpy as np

from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, Limits, way_out

from .frames import Frames, open_clip, upright, video_frames, video_packets
from .language.vision import DEPTH, clip_size, resize

_LEAST_FRAMES = 4
MAX_FRAMES = 768
_SLOWEST, _FASTEST = 0.1, 1000.0  # frames per second; a file may claim anything


def sample_clip(data: bytes, fps: float, limits: Limits = LIMITS) -> tuple[Frames, float]:
    """Up to MAX_FRAMES frames of an uploaded mp4 at some `fps`, evenly over all of it.

    Returns:
        The frames at the size a language model looks at them, UINT8 [F, H, W, 3], F even unless the clip has but
        one, and how many there are per second.

    Raises:
        InvalidRequestError: it is no readable mp4 with pictures, or is too large.
    """
    if len(data) > limits.media_bytes:
        raise InvalidRequestError(
            f"the video has {len(data)} bytes; the limit is {limits.media_bytes}. Cut or shrink it, "
            f"{way_out('media_bytes')}"
        )
    total, rate = _length(data, limits)
    count = _how_many(total, rate, fps)
    indices = np.linspace(0, total - 1, count).round().astype(int).tolist()
    frames = _take(data, indices, limits)
    if not frames:
        raise InvalidRequestError("the video has no frame that can be decoded")
    return np.stack(frames), count / total * rate


def _length(data: bytes, limits: Limits) -> tuple[int, float]:
    """Frames and frames per second. The packets are counted: what the header says may be missing or wrong."""
    with open_clip(data) as container:
        total = sum(bool(packet.size) for packet in video_packets(container, limits))
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    return max(total, 1), min(max(rate, _SLOWEST), _FASTEST)


def _how_many(total: int, rate: float, fps: float) -> int:
    """Frames to take, whole pairs if there are two."""
    wanted = min(max(int(total / rate * fps), _LEAST_FRAMES), MAX_FRAMES, total)
    return max(wanted - wanted % DEPTH, 1)


def _take(data: bytes, indices: list[int], limits: Limits) -> list[Any]:
    frames: list[Any] = []
    size = (0, 0)  # the first frame's, for all: a stream may change its own on the way
    with open_clip(data) as container:
        for index, frame in enumerate(video_frames(container, limits)):
            if index == indices[len(frames)]:
                picture = upright(frame)
                size = size if frames else clip_size(len(indices), *picture.shape[:2])
                frames.append(resize(picture, size))
                if len(frames) == len(indices):
                    break
    return frames
