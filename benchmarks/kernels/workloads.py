# SPDX-License-Identifier: Apache-2.0
"""The denoiser's real sizes: each network with the pictures and clips that it serves."""

from dataclasses import dataclass

from predict2_spec.networks import (
    DIT_2B_TEXT2IMAGE,
    DIT_2B_VIDEO2WORLD,
    DIT_14B_TEXT2IMAGE,
    DIT_14B_VIDEO2WORLD,
    DitSpec,
)
from predict2_spec.video import TEXT2IMAGE_SIZES, VIDEO_SIZES, LatentShape, VideoShape


@dataclass(frozen=True)
class Workload:
    """One forward pass."""

    name: str
    spec: DitSpec
    latent: LatentShape

    @property
    def frames(self) -> int:
        return self.latent.frames

    @property
    def tokens_per_frame(self) -> int:
        return self.latent.tokens // self.latent.frames


def _latent(frames: int, size: tuple[int, int]) -> LatentShape:
    width, height = size
    return VideoShape(frames, height, width).latent


_PICTURE = ("picture", 1, TEXT2IMAGE_SIZES["16:9"])
_CLIPS = [(f"{name}p 16 fps", 93, VIDEO_SIZES[name]["16:9"]) for name in ("480", "720")]
WORKLOADS = [
    Workload(f"{size} {name}", spec, _latent(frames, pixels))
    for size, picture, clip in (
        ("2B", DIT_2B_TEXT2IMAGE, DIT_2B_VIDEO2WORLD),
        ("14B", DIT_14B_TEXT2IMAGE, DIT_14B_VIDEO2WORLD),
    )
    for spec, (name, frames, pixels) in [(picture, _PICTURE), *((clip, of) for of in _CLIPS)]
]
