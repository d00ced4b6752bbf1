# SPDX-License-Identifier: Apache-2.0
"""Language models: a question with or without pictures in, texts out. Two kinds, one file each."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from predict2_runtime.frames import Frames
from predict2_runtime.policy import LanguageModel
from predict2_spec.errors import EngineMismatchError

LOOKS = "qwen2_5_vl"  # the one kind that takes frames
LOCAL_KINDS = (LOOKS, "llama", "qwen3")  # that run in this process, by their model_type
_TOKEN_MARKS = re.compile(r"<\||\|>")


@dataclass(frozen=True)
class Question:
    """What a language model is asked, and how it is to answer."""

    text: str  # the user's turn
    system: str = ""
    frames_first: bool = False  # in the user's turn, before the text
    num_responses: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.0  # 0: the likeliest token each time
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    repetition_penalty: float = 1.0
    seed: int = 0
    ascii_only: bool = False  # only tokens that are plain ASCII

    def to_json(self) -> str:
        """The question as it goes over the wire."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Question":
        """Read a question; fields this version doesn't know are ignored."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


# ask(question, frames, fps) -> responses; frames UINT8 [F, H, W, 3] or None, fps 0 for pictures.
# Raises ServerError when the model fails, and ServerUnavailableError when it doesn't answer in time.
Ask = Callable[[Question, Frames | None, float], list[str]]


def plain_text(text: str) -> str:
    """A caller's text in which no <|...|> is a control token, which would end his turn or stand for frames.

    Only the marks become spaces: a guard has to see whatever is written between them.
    """
    return _TOKEN_MARKS.sub(" ", text)


def local_kind(folder: Path) -> str:
    """The model_type of a checkpoint that can run in this process.

    Raises:
        EngineMismatchError: the folder holds no checkpoint, or one of another kind.
    """
    try:
        kind = str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EngineMismatchError(
            f"{folder} holds no checkpoint with a readable config.json ({error}); fetch it whole, "
            "or name another folder"
        ) from error
    if kind not in LOCAL_KINDS:
        raise EngineMismatchError(
            f"{folder} holds a {kind} model; this version runs {', '.join(LOCAL_KINDS)} itself. "
            "Serve it with vLLM and name its URL instead"
        )
    return kind


def open_language_model(where: LanguageModel) -> Ask:
    """The language model that answers at `where`.

    Raises:
        EngineMismatchError: its checkpoint can't be read, or what runs it isn't installed.
    """
    if where.url:
        from .endpoint import open_endpoint

        return open_endpoint(where)
    try:
        from .local import open_local
    except ImportError as error:
        raise EngineMismatchError(
            f"{where.model} can't be run here: {error}. Install torch and transformers "
            "(pip install torch transformers), or name an endpoint by its URL"
        ) from error
    return open_local(where)
