# SPDX-License-Identifier: Apache-2.0
"""The reasoner stage: questions with or without frames to a vision-language model. What comes in is hostile."""

import math
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import numpy as np

from predict2_runtime.clips import MAX_FRAMES
from predict2_runtime.frames import Frames, check_pixels
from predict2_runtime.language import Ask, Question, open_language_model
from predict2_runtime.policy import Policy
from predict2_spec.critic import MAX_TRIALS
from predict2_spec.errors import InvalidRequestError, ServerUnavailableError
from predict2_spec.limits import LIMITS, Limits

from . import Arrays
from .warming import TEXT

MAX_TEXT_BYTES = 64 * 1024
# Characters of JSON: two texts, six for each of their bytes where it is escaped, and what stands around them.
_MAX_QUESTION = 2 * 6 * MAX_TEXT_BYTES + 4096
MAX_NEW_TOKENS = 4096
MAX_PICTURES = 16  # 1280 tokens each
_RANGES: dict[str, tuple[float, float]] = {
    "num_responses": (1, MAX_TRIALS),
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "temperature": (0, 2),
    "top_p": (0.01, 1),
    "top_k": (0, 1000),
    "repetition_penalty": (0.5, 2),
    "seed": (0, 2**32 - 1),
}


@dataclass(frozen=True)
class Reasoner:
    """Puts each question to the model that the server's owner named."""

    ask: Ask
    limits: Limits = LIMITS

    @classmethod
    def open(cls, policy: Policy) -> "Reasoner":
        """The stage with its model loaded, or one that refuses every call where the owner named none.

        Raises:
            EngineMismatchError: the model can't be opened.
        """
        ask = open_language_model(policy.reasoner) if policy.reasoner else _nobody
        return cls(ask, policy.limits)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`question` JSON, optional `frames` UINT8 [F, H, W, 3] and their `fps` -> `responses` strings.

        Raises:
            InvalidRequestError: one of them is malformed or beyond its limits.
            ServerUnavailableError: there is no model, or it doesn't answer in time.
            ServerError: the model failed.
        """
        question = _read_question(inputs["question"])
        fps = _read_fps(inputs.get("fps"))
        frames = inputs.get("frames")
        if frames is not None:
            _check_frames(frames, fps, self.limits)
        return {"responses": self.ask(question, frames, fps if frames is not None else 0.0)}

    def warm_up(self, policy: Policy) -> None:
        """Have a model in this process say a word; an endpoint is warmed by whoever runs it."""
        if policy.reasoner and not policy.reasoner.url:
            self.ask(Question(TEXT, max_new_tokens=1), None, 0.0)


def _nobody(question: Question, frames: Frames | None, fps: float) -> NoReturn:
    raise ServerUnavailableError(
        "this server has no reasoner to refine prompts or judge clips with; its owner can name one "
        "with predict2-serve --reasoner"
    )


def _read_question(texts: list[str]) -> Question:
    if len(texts) != 1:
        raise InvalidRequestError(f"question holds {len(texts)} values; give one")
    if len(texts[0]) > _MAX_QUESTION:  # before it is parsed: small values make large objects
        raise InvalidRequestError(
            f"question has {len(texts[0])} characters; the limit is {_MAX_QUESTION}. Shorten its texts"
        )
    try:
        question = Question.from_json(texts[0])
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidRequestError(
            f'question must be JSON such as {{"text": "What is this?"}} ({error})'
        ) from error
    for field in fields(Question):
        _check_type(field.name, getattr(question, field.name), field.type)
    for name, (least, most) in _RANGES.items():
        value = getattr(question, name)
        if not least <= value <= most:
            raise InvalidRequestError(
                f"question: {name} {value} must be between {least} and {most}"
            )
    for name in ("text", "system"):
        _check_length(name, getattr(question, name))
    return question


def _check_type(name: str, value: object, wanted: Any) -> None:
    # JSON writes 1.0 as 1, and Python takes True for a number
    known = (int, float) if wanted is float else (wanted,)
    if type(value) not in known or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidRequestError(f"question: {name} {value!r:.40} must be {wanted.__name__}")


def _check_length(name: str, text: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"question: {name} isn't Unicode ({error.reason})") from error
    if size > MAX_TEXT_BYTES:
        raise InvalidRequestError(
            f"question: {name} has {size} bytes; the limit is {MAX_TEXT_BYTES}. Shorten it"
        )


def _read_fps(array: Any) -> float:
    if array is None:
        return 0.0
    values = np.ravel(array)
    if len(values) != 1 or not 0 <= float(values[0]) <= 1000:
        raise InvalidRequestError(
            f"fps {values.tolist()[:4]} must be one number from 0, for pictures, to 1000"
        )
    return float(values[0])


def _check_frames(frames: Any, fps: float, limits: Limits) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        raise InvalidRequestError(
            f"frames {frames.dtype}{list(frames.shape)} must be uint8 [F, H, W, 3], none of them 0"
        )
    most = MAX_FRAMES if fps else MAX_PICTURES
    if len(frames) > most:
        raise InvalidRequestError(
            f"{len(frames)} frames were given; the limit is {MAX_FRAMES} for a clip, which needs its fps, and "
            f"{MAX_PICTURES} for pictures"
        )
    height, width = frames.shape[1:3]
    check_pixels(width, height, limits)
