# SPDX-License-Identifier: Apache-2.0
"""Sizes of pictures and clips: pixels and frames, latents, tokens. The only place with an 8, a 4 or a 16."""

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InvalidRequestError

SPATIAL_STRIDE = 8  # pixels per latent, both ways
TEMPORAL_STRIDE = 4  # frames per latent frame, after the first
PATCH = 2  # latents per token, both ways
PIXEL_MULTIPLE = SPATIAL_STRIDE * PATCH  # 16

ASPECT_RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16")
CONDITIONAL_FRAMES = (1, 5)  # frames of the input a Video2World request may continue from


def nearest_multiples(value: int, multiple: int, offset: int = 0) -> str:
    """The positive numbers of the form `offset + k * multiple` around `value`, for a message."""
    low = (value - offset) // multiple * multiple + offset
    smallest = offset if offset > 0 else multiple
    if low < smallest:
        return f"the smallest is {smallest}"
    return f"nearest are {low} and {low + multiple}"


@dataclass(frozen=True)
class LatentShape:
    """Latent frames, rows and columns; what the DiT sees."""

    frames: int
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int, int]:
        """Token grid (T, rows, columns)."""
        return self.frames, self.height // PATCH, self.width // PATCH

    @property
    def pixels(self) -> "VideoShape":
        """The shape after the VAE decoder.

        Raises:
            InvalidRequestError: the grid of tokens isn't whole, or a side is 0.
        """
        return VideoShape(
            pixel_frames(self.frames), self.height * SPATIAL_STRIDE, self.width * SPATIAL_STRIDE
        )

    @property
    def tokens(self) -> int:
        """Tokens of one DiT forward pass."""
        frames, rows, columns = self.grid
        return frames * rows * columns


@dataclass(frozen=True)
class VideoShape:
    """Frames, height and width in pixels.

    Raises:
        InvalidRequestError: a side is no multiple of 16, or frames is not 1 + 4k.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, value in (("height", self.height), ("width", self.width)):
            if value <= 0 or value % PIXEL_MULTIPLE:
                near = nearest_multiples(value, PIXEL_MULTIPLE)
                raise InvalidRequestError(
                    f"{name} {value} must be a positive multiple of {PIXEL_MULTIPLE}; {near}"
                )
        if self.frames <= 0 or (self.frames - 1) % TEMPORAL_STRIDE:
            near = nearest_multiples(self.frames, TEMPORAL_STRIDE, offset=1)
            raise InvalidRequestError(
                f"num_frames {self.frames} must be 1 + {TEMPORAL_STRIDE}k; {near}"
            )

    @property
    def latent(self) -> LatentShape:
        """The shape after the VAE encoder."""
        return LatentShape(
            latent_frames(self.frames), self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE
        )


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of `frames` pixel frames (1 + 4k)."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


def pixel_frames(latents: int) -> int:
    """Pixel frames of a clip of `latents` latent frames."""
    return (latents - 1) * TEMPORAL_STRIDE + 1


Sizes = Mapping[str, tuple[int, int]]  # aspect ratio -> (width, height) in pixels

TEXT2IMAGE_SIZES: Sizes = {
    "1:1": (1024, 1024),
    "4:3": (1168, 880),
    "3:4": (880, 1168),
    "16:9": (1360, 768),
    "9:16": (768, 1360),
}
VIDEO_SIZES: Mapping[str, Sizes] = {  # by the resolution class of the checkpoint
    "720": {
        "1:1": (960, 960),
        "4:3": (960, 704),
        "3:4": (704, 960),
        "16:9": (1280, 704),
        "9:16": (704, 1280),
    },
    "480": {
        "1:1": (480, 480),
        "4:3": (640, 480),
        "3:4": (480, 640),
        "16:9": (768, 432),
        "9:16": (432, 768),
    },
}
TOY_SIZES: Sizes = {
    "1:1": (64, 64),
    "4:3": (64, 48),
    "3:4": (48, 64),
    "16:9": (80, 48),  # 5:3 is the nearest that so few pixels allow
    "9:16": (48, 80),
}
