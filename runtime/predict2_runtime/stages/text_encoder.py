# SPDX-License-Identifier: Apache-2.0
"""The text encoder stage: prompts to embeddings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from predict2_runtime.engines import Engine, open_engine
from predict2_runtime.text import open_tokenizer, tokenize
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, MAX_PROMPTS, Limits
from predict2_spec.presets import Preset
from predict2_spec.requests import check_text
from predict2_spec.tensors import TEXT_ENCODER

from . import Arrays, check_made
from .warming import TEXT

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class TextEncoder:
    """Tokenizes and encodes; rows past a prompt's end are zero."""

    tokenizer: Tokenizer
    encode: Engine  # on numpy arrays
    limits: Limits = LIMITS

    @classmethod
    def open(cls, folder: Path, preset: Preset, limits: Limits = LIMITS) -> "TextEncoder":
        """The stage whose engine and tokenizer are installed in `folder`."""
        engine = open_engine(folder, TEXT_ENCODER.name)
        tokenizer = open_tokenizer(folder / TOKENIZER_FILE, preset.text_encoder)
        return cls(tokenizer, engine.on_numpy("main"), limits)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`prompt` strings [n] -> `prompt_embeds` FP32 [n, tokens, width].

        Raises:
            InvalidRequestError: no prompt, too many, or one too long.
            ServerError: the engine made NaN or infinite values.
        """
        prompts = inputs["prompt"]
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise InvalidRequestError(
                f"{len(prompts)} prompts were given; give 1 to {MAX_PROMPTS} a call"
            )
        for prompt in prompts:
            check_text("prompt", prompt, self.limits)
        ids, mask = tokenize(self.tokenizer, prompts)
        made = self.encode({"input_ids": ids, "attention_mask": mask})
        check_made(TEXT_ENCODER.name, made["prompt_embeds"])
        return made

    def warm_up(self) -> None:
        """Encode a prompt, and two, as requests with a negative prompt do."""
        for count in (1, 2):
            self({"prompt": [TEXT] * count})
