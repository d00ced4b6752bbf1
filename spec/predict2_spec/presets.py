# SPDX-License-Identifier: Apache-2.0
"""What can be served: one frozen row a preset, naming networks, checkpoint files, sizes and limits."""

from dataclasses import dataclass, replace
from typing import Literal

from . import networks as nets
from .errors import InvalidRequestError
from .video import TEXT2IMAGE_SIZES, TOY_SIZES, VIDEO_SIZES, Sizes, VideoShape

Task = Literal["text2image", "video2world", "text2world"]
TASKS: tuple[Task, ...] = ("text2image", "video2world", "text2world")


@dataclass(frozen=True)
class Preset:
    """A served member of the family. Paths are relative to the checkpoint folder."""

    name: str
    model_size: str  # as the original's --model_size spells it
    resolution: str  # class of the video checkpoint: 480 or 720
    fps: int  # frame rate of the clips
    num_frames: int  # frames of a clip unless the request says otherwise
    image_sizes: Sizes
    video_sizes: Sizes
    text_encoder: nets.TextEncoderSpec
    text_encoder_path: str
    tokenizer_path: str  # a `tokenizers` JSON file
    vae: nets.VaeSpec | nets.ScriptedVaeSpec
    vae_path: str
    text2image: nets.DitSpec
    text2image_path: str
    video2world: nets.DitSpec | None = None
    video2world_path: str = ""
    distilled: bool = False  # pictures take 1 to 4 steps, without guidance
    frame_guard: nets.FrameGuardSpec = nets.FRAME_GUARD
    frame_guard_path: str = "nvidia/Cosmos-Guardrail1"  # a folder
    text_guard_path: str = (
        "meta-llama/Llama-Guard-3-8B"  # a folder; empty: none was made for this preset
    )
    reasoner_path: str = "nvidia/Cosmos-Reason1-7B"  # refines prompts and judges clips; empty: none

    def __post_init__(self) -> None:
        if self.video2world and isinstance(self.vae, nets.ScriptedVaeSpec):
            raise ValueError(
                f"preset {self.name} makes clips and its image tokenizer decodes only pictures; give it a VaeSpec"
            )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks this preset can serve."""
        return TASKS if self.video2world else ("text2image",)

    def dit(self, task: Task) -> nets.DitSpec:
        """The denoiser that `task` ends in.

        Raises:
            InvalidRequestError: the preset has none for it.
        """
        dit = self.text2image if task == "text2image" else self.video2world
        if dit is None:
            raise InvalidRequestError(
                f"preset {self.name} has no {task} network; it serves {', '.join(self.tasks)}"
            )
        return dit

    def size(self, task: Task, aspect_ratio: str) -> tuple[int, int]:
        """(width, height) in pixels that `task` has by default for an aspect ratio.

        Raises:
            InvalidRequestError: the task isn't served, or the aspect ratio is not one of the table's.
        """
        self.dit(task)
        sizes = self.image_sizes if task == "text2image" else self.video_sizes
        if aspect_ratio not in sizes:
            raise InvalidRequestError(
                f"aspect_ratio {aspect_ratio!r:.40} is unknown; choose one of {', '.join(sizes)}"
            )
        return sizes[aspect_ratio]

    def max_pixels(self, task: Task) -> int:
        """Largest picture area `task` accepts: what the largest row of the size table has."""
        sizes = self.image_sizes if task == "text2image" else self.video_sizes
        return max(width * height for width, height in sizes.values())

    def max_frames(self, task: Task) -> int:
        """Most frames that `task` makes at once."""
        return 1 if task == "text2image" else self.num_frames

    def check(self, task: Task, shape: VideoShape) -> None:
        """Refuse a shape the networks of this preset can't take.

        Raises:
            InvalidRequestError: too many frames or pixels, or a side beyond the position table.
        """
        most_frames = self.max_frames(task)
        if shape.frames > most_frames:
            raise InvalidRequestError(
                f"num_frames {shape.frames} is more than preset {self.name} makes in one clip: {most_frames} at most"
            )
        pixels, most_pixels = shape.height * shape.width, self.max_pixels(task)
        if pixels > most_pixels:
            raise InvalidRequestError(
                f"width {shape.width} x height {shape.height} is {pixels} pixels; "
                f"preset {self.name} takes {most_pixels} at most"
            )
        dit = self.dit(task)
        _, most_rows, most_columns = dit.max_grid
        _, rows, columns = shape.latent.grid
        if dit.neighborhoods and (rows, columns) != nets.NEIGHBORHOOD_GRID[1:]:
            raise InvalidRequestError(
                f"width {shape.width} x height {shape.height} isn't what the sparse network of preset {self.name} "
                "was trained for, 1280 x 704 (16:9); use that, or a server of a preset that isn't sparse"
            )
        if rows > most_rows or columns > most_columns:
            raise InvalidRequestError(
                f"width {shape.width} x height {shape.height} is a grid of {columns} x {rows} tokens; "
                f"the network's positions end at {most_columns} x {most_rows}"
            )


T5_11B_FOLDER = "google-t5/t5-11b"

TOY = Preset(
    name="toy",
    model_size="toy",
    resolution="64",
    fps=8,
    num_frames=13,
    image_sizes=TOY_SIZES,
    video_sizes=TOY_SIZES,
    text_encoder=nets.TOY_TEXT_ENCODER,
    text_encoder_path="predict2-toy/text_encoder.safetensors",
    tokenizer_path="predict2-toy/tokenizer.json",
    vae=nets.TOY_VAE,
    vae_path="predict2-toy/vae.safetensors",
    text2image=nets.DIT_TOY_TEXT2IMAGE,
    text2image_path="predict2-toy/text2image.safetensors",
    video2world=nets.DIT_TOY_VIDEO2WORLD,
    video2world_path="predict2-toy/video2world.safetensors",
    frame_guard=nets.TOY_FRAME_GUARD,
    frame_guard_path="predict2-toy/guardrail",
    text_guard_path="",
    reasoner_path="",
)
_0_6B = "nvidia/Cosmos-Predict2-0.6B-Text2Image"
IMAGE_0_6B = Preset(
    name="0.6b",
    model_size="0.6B",
    resolution="",
    fps=0,
    num_frames=1,
    image_sizes=TEXT2IMAGE_SIZES,
    video_sizes={},
    text_encoder=nets.T5_11B,
    text_encoder_path=T5_11B_FOLDER,
    tokenizer_path=f"{T5_11B_FOLDER}/tokenizer.json",
    vae=nets.WAN_VAE,
    vae_path=f"{_0_6B}/tokenizer/tokenizer.pth",
    text2image=nets.DIT_0_6B_TEXT2IMAGE,
    text2image_path=f"{_0_6B}/model.pt",
)
IMAGE_0_6B_DISTILLED = replace(
    IMAGE_0_6B,
    name="0.6b-distilled",
    text2image_path=f"{_0_6B}/model_distilled.pt",
    distilled=True,
)
_FAST_TOKENIZER = f"{_0_6B}/tokenizer_fast/tokenizer.pth"
IMAGE_0_6B_FAST = replace(
    IMAGE_0_6B,
    name="0.6b-fast",
    vae=nets.FAST_IMAGE_TOKENIZER,
    vae_path=_FAST_TOKENIZER,
    text2image_path=f"{_0_6B}/model_fast_tokenizer.pt",
)
IMAGE_0_6B_FAST_DISTILLED = replace(
    IMAGE_0_6B_FAST,
    name="0.6b-fast-distilled",
    text2image_path=f"{_0_6B}/model_fast_tokenizer_distilled.pt",
    distilled=True,
)


def _released(
    size: str, text2image: nets.DitSpec, video2world: nets.DitSpec, resolution: str, fps: int
) -> Preset:
    """A row of the released 2B and 14B checkpoints, by their published file names."""
    folder = f"nvidia/Cosmos-Predict2-{size}"
    return Preset(
        name=f"{size.lower()}-{resolution}p-{fps}fps",
        model_size=size,
        resolution=resolution,
        fps=fps,
        num_frames=93 if fps == 16 else 61,
        image_sizes=TEXT2IMAGE_SIZES,
        video_sizes=VIDEO_SIZES[resolution],
        vae=nets.WAN_VAE,
        vae_path=f"{folder}-Video2World/tokenizer/tokenizer.pth",
        text2image=text2image,
        text2image_path=f"{folder}-Text2Image/model.pt",
        video2world=video2world,
        video2world_path=f"{folder}-Video2World/model-{resolution}p-{fps}fps.pt",
        text_encoder=nets.T5_11B,
        text_encoder_path=T5_11B_FOLDER,
        tokenizer_path=f"{T5_11B_FOLDER}/tokenizer.json",
    )


def _sparse(dense: Preset, video2world: nets.DitSpec) -> Preset:
    """The row of the checkpoint that was trained on with sparse attention."""
    return replace(
        dense,
        name=f"{dense.name}-sparse",
        video2world=video2world,
        video2world_path=dense.video2world_path.replace(".pt", "-natten.pt"),
        video_sizes={"16:9": dense.video_sizes["16:9"]},
    )


_SIZES = (
    (
        ("2B", nets.DIT_2B_TEXT2IMAGE, nets.DIT_2B_VIDEO2WORLD),
        nets.DIT_2B_VIDEO2WORLD_SPARSE,
    ),
    (
        ("14B", nets.DIT_14B_TEXT2IMAGE, nets.DIT_14B_VIDEO2WORLD),
        nets.DIT_14B_VIDEO2WORLD_SPARSE,
    ),
)
_FRAME_RATES = (16, 10)
PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        TOY,
        IMAGE_0_6B,
        IMAGE_0_6B_DISTILLED,
        IMAGE_0_6B_FAST,
        IMAGE_0_6B_FAST_DISTILLED,
        *(
            _released(*dense, resolution, fps)
            for dense, _ in _SIZES
            for resolution in VIDEO_SIZES
            for fps in _FRAME_RATES
        ),
        *(
            _sparse(_released(*dense, "720", fps), sparse)
            for dense, sparse in _SIZES
            for fps in _FRAME_RATES
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InvalidRequestError: there is none; the message lists them.
    """
    if name not in PRESETS:
        raise InvalidRequestError(
            f"preset {name!r:.40} is unknown; choose one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]
