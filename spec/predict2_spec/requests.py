# SPDX-License-Identifier: Apache-2.0
"""What a caller may ask, frozen, with every check that needs no network and no file."""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from .errors import InvalidRequestError
from .limits import LIMITS, Limits, way_out
from .presets import Preset, Task
from .video import CONDITIONAL_FRAMES, VideoShape

# Shared by every network of the family; the original passes it as the negative prompt.
DEFAULT_NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, motion "
    "blur, over-saturation, shaky footage, low resolution, grainy texture, pixelated images, "
    "poorly lit areas, underexposed and overexposed scenes, poor color balance, washed out "
    "colors, choppy sequences, jerky movements, low frame rate, artifacting, color banding, "
    "unnatural transitions, outdated special effects, fake elements, unconvincing visuals, "
    "poorly edited content, jump cuts, visual noise, and flickering. Overall, the video is of "
    "poor quality."
)

ImageFormat = Literal["jpg", "png"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("jpg", "png")
# ab2: the original's second-order rule and clean last pass. euler: diffusers' rule, for comparison.
# distilled: the few steps of a distilled network, which a request asks for by their number.
Solver = Literal["ab2", "euler", "distilled"]
SOLVERS: tuple[Solver, ...] = ("ab2", "euler")
MAX_DISTILL_STEPS = 4


def check_text(name: str, value: str, limits: Limits = LIMITS) -> None:
    """Refuse a text no encoder should see.

    Raises:
        InvalidRequestError: it is too long, holds a zero byte, or isn't Unicode.
    """
    size = _count_bytes(name, value)
    if size > limits.prompt_bytes:
        raise InvalidRequestError(
            f"{name} has {size} bytes; the limit is {limits.prompt_bytes}. "
            f"The text encoder reads some 512 tokens, so shorten it, {way_out('prompt_bytes')}"
        )


def _count_bytes(name: str, value: str) -> int:
    if "\0" in value:
        raise InvalidRequestError(f"{name} holds a zero byte; remove it")
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"{name} can't be written as UTF-8 ({error.reason})") from error


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """What all tasks share.

    Making one refuses what no server can take; how much of it a server takes is `check`'s to say, with its limits.

    Raises:
        InvalidRequestError: a value can't be right.
    """

    task: ClassVar[Task]

    prompt: str
    negative_prompt: str = ""
    seed: int = 0  # 0 .. 2**32 - 1, numpy's legacy generator takes no more
    num_steps: int = 35  # solver steps; one clean network pass follows
    solver: Solver = "ab2"
    aspect_ratio: str = "16:9"
    width: int = 0  # pixels; 0: from the aspect ratio
    height: int = 0
    # What the caller expects of the server. Empty or 0: whatever it serves.
    model_size: str = ""
    resolution: str = ""
    fps: int = 0
    return_frames: bool = False  # also return the raw frames
    disable_guardrail: bool = False  # refused unless the server's owner allows it

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        _count_bytes("prompt", self.prompt)
        _count_bytes("negative_prompt", self.negative_prompt)
        if not self.prompt.strip():
            raise InvalidRequestError("prompt is empty; say what to generate")
        if not 0 <= self.seed < 2**32:
            raise InvalidRequestError(f"seed {self.seed} must be between 0 and {2**32 - 1}")
        if self.num_steps < 1:
            raise InvalidRequestError(f"num_steps {self.num_steps} must be 1 or more")
        if self.solver not in SOLVERS:
            raise InvalidRequestError(
                f"solver {self.solver!r:.40} is unknown; choose one of {', '.join(SOLVERS)}"
            )
        if bool(self.width) != bool(self.height):
            raise InvalidRequestError(
                f"width {self.width} and height {self.height}: give both or neither"
            )

    def check(self, limits: Limits = LIMITS) -> None:
        """Refuse more than a server takes.

        Raises:
            InvalidRequestError: a value is above its limit.
        """
        check_text("prompt", self.prompt, limits)
        check_text("negative_prompt", self.negative_prompt, limits)
        check_steps(self.num_steps, limits)

    def expect(self, preset: Preset) -> None:
        """Refuse to run on another member of the family than the caller asked for.

        Raises:
            InvalidRequestError: the server's preset is not what was asked.
        """
        for name, asked, served in (
            ("model_size", self.model_size, preset.model_size),
            ("resolution", self.resolution, preset.resolution),
            ("fps", self.fps, preset.fps),
        ):
            if asked and str(asked).lower() != str(served).lower():
                raise InvalidRequestError(
                    f"{name} {asked!s:.40} was asked for, but this server runs preset {preset.name} "
                    f"({name} {served}); leave it out or start a server for it"
                )


def check_steps(value: int, limits: Limits = LIMITS) -> None:
    """Refuse a number of solver steps outside its limits (InvalidRequestError)."""
    if not 1 <= value <= limits.num_steps:
        raise InvalidRequestError(
            f"num_steps {value} must be between 1 and {limits.num_steps}; choose one of these, {way_out('num_steps')}"
        )


def check_guidance(name: str, value: float, limits: Limits = LIMITS) -> None:
    """Refuse a guidance that is no number or outside its limits (InvalidRequestError)."""
    _check_strength(name, value)
    if value > limits.guidance:
        raise InvalidRequestError(
            f"{name} {value} must be between 0 and {limits.guidance}; choose less, {way_out('guidance')}"
        )


def _check_strength(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise InvalidRequestError(f"{name} {value} must be a number from 0 up")


def _frame_shape(
    request: GenerationRequest, preset: Preset, task: Task, num_frames: int, limits: Limits
) -> VideoShape:
    width, height = preset.size(task, request.aspect_ratio)
    if request.width:
        width, height = request.width, request.height
    shape = VideoShape(num_frames, height, width)
    preset.check(task, shape)
    if shape.frames > limits.num_frames:
        raise InvalidRequestError(
            f"num_frames {shape.frames} is above this server's limit of {limits.num_frames}; give fewer, as 1 + 4k, "
            f"{way_out('num_frames')}"
        )
    if width * height > limits.pixels:
        raise InvalidRequestError(
            f"width {width} x height {height} is {width * height} pixels; this server's limit is {limits.pixels}. "
            f"Give a smaller width and height, {way_out('pixels')}"
        )
    return shape


@dataclass(frozen=True, kw_only=True)
class Text2ImageRequest(GenerationRequest):
    """A picture from text."""

    task: ClassVar[Task] = "text2image"

    guidance: float = 4.0
    distill_steps: int = 0  # of a distilled network, 1 to 4; its server takes 4 when it isn't given
    output_format: ImageFormat = "jpg"

    def _check(self) -> None:
        super()._check()
        _check_strength("guidance", self.guidance)
        if not 0 <= self.distill_steps <= MAX_DISTILL_STEPS:
            raise InvalidRequestError(
                f"distill_steps {self.distill_steps} must be between 1 and {MAX_DISTILL_STEPS}, "
                "or 0 for a network that isn't distilled"
            )
        if self.output_format not in IMAGE_FORMATS:
            raise InvalidRequestError(
                f"output_format {self.output_format!r:.40} is unknown; choose one of {', '.join(IMAGE_FORMATS)}"
            )

    def check(self, limits: Limits = LIMITS) -> None:
        """As GenerationRequest; guidance too."""
        super().check(limits)
        check_guidance("guidance", self.guidance, limits)

    def expect(self, preset: Preset) -> None:
        """Also refuse to take distilled steps with a network that wasn't distilled."""
        super().expect(preset)
        if self.distill_steps and not preset.distilled:
            raise InvalidRequestError(
                f"distill_steps {self.distill_steps} was asked for, but this server runs preset {preset.name}, which "
                "isn't distilled; leave it out or start a server for 0.6b-distilled"
            )

    def shape(self, preset: Preset, limits: Limits = LIMITS) -> VideoShape:
        """Size of the picture; raises InvalidRequestError when preset or limits don't have it."""
        return _frame_shape(self, preset, "text2image", 1, limits)


@dataclass(frozen=True, kw_only=True)
class _ClipRequest(GenerationRequest):
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    guidance: float = 7.0
    num_frames: int = 0  # 0: the preset's
    disable_prompt_refiner: bool = False  # take the prompt as it is

    def _check(self) -> None:
        super()._check()
        _check_strength("guidance", self.guidance)
        if self.num_frames < 0:
            raise InvalidRequestError(f"num_frames {self.num_frames} must be positive, as 1 + 4k")

    def check(self, limits: Limits = LIMITS) -> None:
        """As GenerationRequest; guidance too."""
        super().check(limits)
        check_guidance("guidance", self.guidance, limits)

    @property
    def num_given(self) -> int:
        """Frames of the clip that are there before it is generated."""
        return 1

    def shape(self, preset: Preset, limits: Limits = LIMITS) -> VideoShape:
        """Size of the clip.

        Raises:
            InvalidRequestError: the preset can't make it, it is above the limits, or no frame is left to generate.
        """
        num_frames = self.num_frames or preset.num_frames
        shape = _frame_shape(self, preset, "video2world", num_frames, limits)
        if shape.frames <= self.num_given:
            raise InvalidRequestError(
                f"num_frames {shape.frames} must be more than the {self.num_given} it goes on from"
            )
        return shape


@dataclass(frozen=True, kw_only=True)
class Video2WorldRequest(_ClipRequest):
    """A clip that goes on from a picture or from the last frames of a clip."""

    task: ClassVar[Task] = "video2world"

    image: bytes = field(default=b"", repr=False)  # an encoded picture ...
    video: bytes = field(default=b"", repr=False)  # ... or an mp4; just one of them
    num_conditional_frames: int = 1

    def _check(self) -> None:
        super()._check()
        if bool(self.image) == bool(self.video):
            given = "both are given" if self.image else "neither is given"
            raise InvalidRequestError(f"give an image or a video to go on from: {given}")
        if self.num_conditional_frames not in CONDITIONAL_FRAMES:
            raise InvalidRequestError(
                f"num_conditional_frames {self.num_conditional_frames} must be one of {CONDITIONAL_FRAMES}"
            )
        if self.image and self.num_conditional_frames > 1:
            raise InvalidRequestError(
                f"num_conditional_frames {self.num_conditional_frames} needs a video; a picture has one frame"
            )

    def check(self, limits: Limits = LIMITS) -> None:
        """As GenerationRequest; the size of the input too."""
        super().check(limits)
        size = len(self.image or self.video)
        if size > limits.media_bytes:
            raise InvalidRequestError(
                f"the input file has {size} bytes; the limit is {limits.media_bytes}. Cut or shrink it, "
                f"{way_out('media_bytes')}"
            )

    @property
    def num_given(self) -> int:
        """The frames of the input that the clip begins with."""
        return self.num_conditional_frames


@dataclass(frozen=True, kw_only=True)
class Text2WorldRequest(_ClipRequest):
    """A clip from text: a picture first, then a clip that goes on from it."""

    task: ClassVar[Task] = "text2world"

    image_guidance: float = 4.0

    def _check(self) -> None:
        super()._check()
        _check_strength("image_guidance", self.image_guidance)

    def check(self, limits: Limits = LIMITS) -> None:
        """As GenerationRequest; guidance of the picture too."""
        super().check(limits)
        check_guidance("image_guidance", self.image_guidance, limits)


Request = Text2ImageRequest | Video2WorldRequest | Text2WorldRequest
REQUESTS: dict[Task, type[Request]] = {
    "text2image": Text2ImageRequest,
    "video2world": Video2WorldRequest,
    "text2world": Text2WorldRequest,
}


# The Python type of every field on the wire; `tensors` turns it into a Triton dtype.
FIELD_TYPES: dict[str, type] = {
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "num_steps": int,
    "solver": str,
    "aspect_ratio": str,
    "width": int,
    "height": int,
    "model_size": str,
    "resolution": str,
    "fps": int,
    "return_frames": bool,
    "disable_guardrail": bool,
    "disable_prompt_refiner": bool,
    "guidance": float,
    "image_guidance": float,
    "distill_steps": int,
    "output_format": str,
    "num_frames": int,
    "image": bytes,
    "video": bytes,
    "num_conditional_frames": int,
}
