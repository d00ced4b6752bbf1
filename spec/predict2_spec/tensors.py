# SPDX-License-Identifier: Apache-2.0
"""Names, types and dims of every Triton model's tensors. The config.pbtxt files are tested against this."""

from dataclasses import dataclass, fields
from typing import Literal

from .networks import LATENT_CHANNELS
from .presets import TASKS, Preset
from .requests import FIELD_TYPES, REQUESTS

Dtype = Literal["BYTES", "UINT8", "INT64", "FP32", "FP64", "BOOL"]


@dataclass(frozen=True)
class Tensor:
    """One input or output; -1 is a free dim."""

    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Model:
    """A Triton model: what goes in, what comes out."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool = False


_DTYPES: dict[type, tuple[Dtype, tuple[int, ...]]] = {
    str: ("BYTES", (1,)),
    int: ("INT64", (1,)),
    float: ("FP64", (1,)),
    bool: ("BOOL", (1,)),
    bytes: ("UINT8", (-1,)),
}
REQUIRED_FIELDS = ("prompt",)


def field_tensor(name: str) -> Tensor:
    """The tensor that carries one request field."""
    dtype, dims = _DTYPES[FIELD_TYPES[name]]
    return Tensor(name, dtype, dims, optional=name not in REQUIRED_FIELDS)


MEDIA = Tensor("media", "UINT8", (-1,))  # an encoded jpg, png or mp4
METADATA = Tensor("metadata", "BYTES", (1,))  # JSON
FRAMES = Tensor("frames", "UINT8", (-1, -1, -1, 3))  # [F, H, W, RGB], only with return_frames
RESULT = (MEDIA, METADATA, FRAMES)

TASK_MODELS = tuple(
    Model(task, tuple(field_tensor(f.name) for f in fields(REQUESTS[task])), RESULT)
    for task in TASKS
)

EVENT = Tensor("event", "BYTES", (1,))  # JSON: stage, step, of, seconds
# JSON: status, message. A stream's errors travel as data: reported as Triton's own they have no status, and with
# the header that adds one Triton 2.51 crashes once in a few hundred.
ERROR = Tensor("error", "BYTES", (1,))
GENERATE = Model(
    "generate",  # any task; streams events, then the result or an error
    (Tensor("task", "BYTES", (1,)), *(field_tensor(name) for name in FIELD_TYPES)),
    (EVENT, ERROR, *RESULT),
    decoupled=True,
)

# Beside the calls that make something: how far one of them is, its result, stopping it. See `tracking`.
TRACKING = Model(
    "tracking",
    (Tensor("request_id", "BYTES", (1,)), Tensor("action", "BYTES", (1,), optional=True)),
    (Tensor("state", "BYTES", (1,)), MEDIA, METADATA),  # JSON: tracking.RequestState
)

TEXT_ENCODER = Model(
    "text_encoder",
    (Tensor("prompt", "BYTES", (-1,)),),  # n prompts
    (Tensor("prompt_embeds", "FP32", (-1, -1, -1)),),  # [n, tokens, width]
)
VAE_ENCODER = Model(
    "vae_encoder",
    (Tensor("frames", "UINT8", (-1, -1, -1, 3)),),  # [1 + 4k, H, W, RGB]
    (Tensor("latents", "FP32", (LATENT_CHANNELS, -1, -1, -1)),),  # normalised, [C, T, H, W]
)
VAE_DECODER = Model(
    "vae_decoder",
    (Tensor("latents", "FP32", (LATENT_CHANNELS, -1, -1, -1)),),
    (Tensor("frames", "UINT8", (-1, -1, -1, 3)),),
)

_VERDICT = Tensor("verdict", "BYTES", (1,))  # JSON: guardrails.Verdict
_SUBJECT = Tensor("subject", "BYTES", (1,), optional=True)  # one of guardrails.SUBJECTS
GUARDRAIL_TEXT = Model("guardrail_text", (Tensor("text", "BYTES", (1,)), _SUBJECT), (_VERDICT,))
GUARDRAIL_VIDEO = Model(
    "guardrail_video",
    (Tensor("frames", "UINT8", (-1, -1, -1, 3)), _SUBJECT),
    (Tensor("frames", "UINT8", (-1, -1, -1, 3)), _VERDICT),  # the frames with faces pixelated
)
# The vision-language model behind prompt_refiner and critic; both put their questions to it.
REASONER = Model(
    "reasoner",
    (
        Tensor("question", "BYTES", (1,)),  # JSON: language.Question
        Tensor("frames", "UINT8", (-1, -1, -1, 3), optional=True),
        Tensor("fps", "FP64", (1,), optional=True),  # of the frames; left out: they are pictures
    ),
    (Tensor("responses", "BYTES", (-1,)),),
)
PROMPT_REFINER = Model(
    "prompt_refiner",
    (
        Tensor("prompt", "BYTES", (1,)),
        Tensor("frames", "UINT8", (-1, -1, -1, 3), optional=True),  # a picture to look at ...
        Tensor("video", "UINT8", (-1,), optional=True),  # ... or an encoded clip
    ),
    (Tensor("refined_prompt", "BYTES", (1,)),),
)
CRITIC = Model(
    "critic",
    (
        Tensor("video", "UINT8", (-1,)),  # an encoded clip
        Tensor("num_trials", "INT64", (1,), optional=True),
        Tensor("seed", "INT64", (1,), optional=True),
    ),
    (Tensor("responses", "BYTES", (-1,)), Tensor("score", "FP64", (1,))),  # 0..1, as critic.score
)
BEST_OF_N = Model(
    "best_of_n",
    (
        *(field_tensor(f.name) for f in fields(REQUESTS["video2world"])),
        Tensor("num_generations", "INT64", (1,), optional=True),
        Tensor("num_critic_trials", "INT64", (1,), optional=True),
    ),
    (MEDIA, METADATA, Tensor("ranking", "BYTES", (1,))),  # JSON: critic.Judged, best first
)

_LATENT_DIMS = (LATENT_CHANNELS, -1, -1, -1)  # [C, T, H, W]
_STEP_INPUTS = (
    Tensor("latents", "FP32", _LATENT_DIMS),
    Tensor("previous_x0", "FP32", _LATENT_DIMS),  # ignored at step 0
    Tensor("step", "INT64", (1,)),  # from 0; with ab2, step num_steps is the clean pass
    Tensor("num_steps", "INT64", (1,)),
    Tensor("solver", "BYTES", (1,), optional=True),
    Tensor("guidance", "FP64", (1,)),
    Tensor("prompt_embeds", "FP32", (-1, -1)),  # [tokens, width]
    # left out: no guidance, one network pass instead of two
    Tensor("negative_prompt_embeds", "FP32", (-1, -1), optional=True),
)
_STEP_OUTPUTS = (Tensor("latents", "FP32", _LATENT_DIMS), Tensor("x0", "FP32", _LATENT_DIMS))
TEXT2IMAGE_DENOISER = Model("text2image_denoiser", _STEP_INPUTS, _STEP_OUTPUTS)
VIDEO2WORLD_DENOISER = Model(
    "video2world_denoiser",
    # the clean latents of the first frames; its T is how many are given
    (*_STEP_INPUTS, Tensor("condition_latents", "FP32", _LATENT_DIMS)),
    _STEP_OUTPUTS,
)

STAGES = (  # each owns an engine that predict2-export builds
    TEXT_ENCODER,
    VAE_ENCODER,
    VAE_DECODER,
    TEXT2IMAGE_DENOISER,
    VIDEO2WORLD_DENOISER,
    GUARDRAIL_VIDEO,
)
# They find out from the server's policy what they run on.
LANGUAGE_STAGES = (GUARDRAIL_TEXT, REASONER, PROMPT_REFINER, CRITIC)
_VIDEO_STAGES = (VAE_ENCODER, VIDEO2WORLD_DENOISER)


def served_stages(preset: Preset) -> tuple[Model, ...]:
    """The stages a preset needs: without video there is nothing to go on from and nothing to make a clip."""
    return tuple(s for s in STAGES if preset.video2world or s not in _VIDEO_STAGES)


def engineless(preset: Preset) -> tuple[str, ...]:
    """The models of a preset that predict2-export installs without building an engine, by name."""
    about_clips = (m.name for m in (BEST_OF_N, REASONER, PROMPT_REFINER, CRITIC))
    always = (*preset.tasks, GENERATE.name, TRACKING.name, GUARDRAIL_TEXT.name)
    return (*always, *about_clips) if preset.video2world else always


MODELS: dict[str, Model] = {
    model.name: model
    for model in (*TASK_MODELS, GENERATE, BEST_OF_N, TRACKING, *STAGES, *LANGUAGE_STAGES)
}
