# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of every network, frozen. The family: toy, 0.6B, 2B and 14B."""

from dataclasses import dataclass, replace
from typing import Literal

from .video import PATCH

LATENT_CHANNELS = 16
Axes = tuple[int, int, int]  # a number for each of t, rows and columns
# The grid that neighborhoods are written for: any number of frames of 1280x704 pixels.
NEIGHBORHOOD_GRID = (None, 44, 80)


@dataclass(frozen=True)
class Neighborhood:
    """Which keys a query of sparse self-attention sees, along t, rows and columns.

    As in NATTEN 0.21, without causality: tokens whose position has the same remainder by `dilation`
    form a group; inside it every `stride` queries in a row share the window around their middle
    one, shifted where it would leave the grid.
    """

    window: tuple[int | None, int | None, int | None]  # tokens of a group; None is the whole axis
    stride: Axes = (1, 1, 1)
    dilation: Axes = (1, 1, 1)

    def on(self, grid: Axes) -> "Neighborhood":
        """The same neighborhood on another grid than NEIGHBORHOOD_GRID, its whole axes spelt out.

        Sizes grow with the grid as in the original, halves rounded to even: a window keeps two
        tokens at least, no stride exceeds its window and dilated windows fit the axis.
        """
        axes = [
            _scale_axis(*axis)
            for axis in zip(
                self.window, self.stride, self.dilation, grid, NEIGHBORHOOD_GRID, strict=True
            )
        ]
        window, stride, dilation = zip(*axes, strict=True)
        return Neighborhood(window, stride, dilation)


def _scale_axis(
    window: int | None, stride: int, dilation: int, length: int, base: int | None
) -> Axes:
    scale = 1.0 if base is None else length / base
    window = length if window is None else min(max(2, round(window * scale)), length)
    stride = min(max(1, round(stride * scale)), window)
    dilation = min(max(1, round(dilation * scale)), length // window)
    return window, stride, dilation


# The kinds in the released sparse networks, and the share of the keys that a query sees.
DILATED = Neighborhood((None, 4, 16), dilation=(1, 11, 5))  # 1.8 %
SLABS = Neighborhood((None, 12, 16), (1, 4, 1), (1, 1, 5))  # 5.5 %
PATCHES_3 = Neighborhood((None, 12, 24), (1, 4, 8))  # 8.2 %: 3x3 patches of 4x8 tokens
PATCHES_5 = Neighborhood((None, 20, 40), (1, 4, 8))  # 22.7 %
PATCHES_7 = Neighborhood((None, 28, 56), (1, 4, 8))  # 44.5 %


@dataclass(frozen=True)
class DitSpec:
    """The denoiser: a diffusion transformer over [B, C, T, H, W] latents."""

    width: int  # D
    num_blocks: int
    num_heads: int
    rope_scale: tuple[float, float, float]  # NTK extrapolation ratio of the t, h and w axes
    condition_mask: bool  # Video2World appends a channel that marks the conditioning frames
    text_width: int = 1024
    adaln_rank: int = 256
    mlp_ratio: int = 4
    max_grid: Axes = (128, 120, 120)  # tokens along t, rows, columns
    # The original forms its rotation angles in bfloat16, and the released weights were trained so.
    rope_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    # Of every block's self-attention; None is dense, and so are all blocks where this is empty.
    neighborhoods: tuple[Neighborhood | None, ...] = ()

    def __post_init__(self) -> None:
        if self.neighborhoods and len(self.neighborhoods) != self.num_blocks:
            raise ValueError(
                f"{len(self.neighborhoods)} neighborhoods were given for {self.num_blocks} blocks; "
                "give one a block, or none"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def block_neighborhoods(self) -> tuple[Neighborhood | None, ...]:
        """One entry a block, also where all are dense."""
        return self.neighborhoods or (None,) * self.num_blocks

    @property
    def rope_dims(self) -> Axes:
        """How a head's channels are shared among the t, h and w axes."""
        spatial = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * spatial, spatial, spatial

    @property
    def input_channels(self) -> int:
        """Latent, condition mask (video only) and padding mask."""
        return LATENT_CHANNELS + int(self.condition_mask) + 1

    @property
    def patch_inputs(self) -> int:
        """Features of one input patch: 68 for images, 72 for video."""
        return self.input_channels * PATCH * PATCH

    @property
    def patch_outputs(self) -> int:
        """Features of one output patch."""
        return LATENT_CHANNELS * PATCH * PATCH


@dataclass(frozen=True)
class VaeSpec:
    """The Wan 2.1 causal video VAE: 8x8 in space, 4x in time, 16 channels."""

    base_width: int
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_blocks: int = 2  # residual blocks a level in the encoder; the decoder has one more
    temporal_down: tuple[bool, ...] = (False, True, True)
    mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip


@dataclass(frozen=True)
class ScriptedVaeSpec:
    """An image tokenizer published as TorchScript: 8x8 in space, 16 channels, pictures only.

    Its layers and the statistics of its latents are in its file and nowhere else.
    """


@dataclass(frozen=True)
class FaceDetectorSpec:
    """RetinaFace on a ResNet with bottlenecks: boxes of faces at strides 8, 16 and 32."""

    base_width: int = 64  # of the stem; the stages' outputs are 4, 8, 16 and 32 times as wide
    num_blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    pyramid_width: int = 256
    anchors: tuple[tuple[int, ...], ...] = (
        (16, 32),
        (64, 128),
        (256, 512),
    )  # pixels, a stride each


@dataclass(frozen=True)
class ContentFilterSpec:
    """SigLIP's vision tower with its pooling head, and a small classifier on its normalised output."""

    image_size: int = 384  # pixels a side; frames are resized to it
    patch: int = 14
    width: int = 1152
    num_layers: int = 27
    num_heads: int = 16
    ff_width: int = 4304
    hidden: tuple[int, int] = (512, 256)  # of the classifier


@dataclass(frozen=True)
class FrameGuardSpec:
    """What looks at frames before they leave the server."""

    faces: FaceDetectorSpec
    content: ContentFilterSpec


@dataclass(frozen=True)
class TextEncoderSpec:
    """A T5 encoder (the original T5: ReLU, no gate)."""

    width: int
    num_layers: int
    num_heads: int
    head_dim: int
    ff_width: int
    vocab_size: int
    num_tokens: int  # every prompt is padded or cut to this many
    num_buckets: int = 32
    max_distance: int = 128


DIT_0_6B_TEXT2IMAGE = DitSpec(1280, 20, 20, (1.0, 4.0, 4.0), condition_mask=False)
DIT_2B_TEXT2IMAGE = DitSpec(2048, 28, 16, (1.0, 4.0, 4.0), condition_mask=False)
DIT_2B_VIDEO2WORLD = DitSpec(2048, 28, 16, (1.0, 3.0, 3.0), condition_mask=True)
DIT_14B_TEXT2IMAGE = DitSpec(5120, 36, 40, (1.0, 4.0, 4.0), condition_mask=False)
DIT_14B_VIDEO2WORLD = DitSpec(5120, 36, 40, (20 / 24, 2.0, 2.0), condition_mask=True)

# The weights named `-natten`: the dense networks, trained on with these neighborhoods.
DIT_2B_VIDEO2WORLD_SPARSE = replace(
    DIT_2B_VIDEO2WORLD,
    neighborhoods=(
        *2 * [DILATED], SLABS, *2 * [PATCHES_3], SLABS, *4 * [PATCHES_3], SLABS,
        *12 * [PATCHES_5], PATCHES_7, *3 * [PATCHES_5], PATCHES_3,
    ),
)  # fmt: skip
DIT_14B_VIDEO2WORLD_SPARSE = replace(
    DIT_14B_VIDEO2WORLD,
    neighborhoods=(
        *11 * [DILATED], *2 * [SLABS], *10 * [PATCHES_3], PATCHES_5, PATCHES_7, PATCHES_5,
        PATCHES_7, None, PATCHES_7, *2 * [PATCHES_5], *2 * [PATCHES_7], PATCHES_5, PATCHES_7,
        PATCHES_5,
    ),
)  # fmt: skip
WAN_VAE = VaeSpec(base_width=96)
FAST_IMAGE_TOKENIZER = ScriptedVaeSpec()
FRAME_GUARD = FrameGuardSpec(FaceDetectorSpec(), ContentFilterSpec())
T5_11B = TextEncoderSpec(1024, 24, 128, 128, 65536, vocab_size=32128, num_tokens=512)

DIT_TOY_TEXT2IMAGE = DitSpec(
    128, 6, 4, (1.0, 1.0, 1.0), condition_mask=False,
    text_width=64, adaln_rank=64, max_grid=(16, 32, 32),
)  # fmt: skip
DIT_TOY_VIDEO2WORLD = DitSpec(
    128, 6, 4, (1.0, 1.0, 1.0), condition_mask=True,
    text_width=64, adaln_rank=64, max_grid=(16, 32, 32),
)  # fmt: skip
TOY_VAE = VaeSpec(  # its weights are scaled so that latents are normal by themselves
    base_width=12, num_blocks=1, mean=(0.0,) * LATENT_CHANNELS, std=(1.0,) * LATENT_CHANNELS
)
TOY_TEXT_ENCODER = TextEncoderSpec(64, 2, 4, 16, 128, vocab_size=64, num_tokens=32)
TOY_FRAME_GUARD = FrameGuardSpec(
    FaceDetectorSpec(base_width=4, num_blocks=(1, 1, 1, 1), pyramid_width=32),
    ContentFilterSpec(
        image_size=32, patch=8, width=32, num_layers=2, num_heads=2, ff_width=64, hidden=(16, 8)
    ),
)
