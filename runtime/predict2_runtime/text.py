# SPDX-License-Identifier: Apache-2.0
"""Prompts to token ids, padded or cut to the text encoder's length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from predict2_spec.errors import EngineMismatchError
from predict2_spec.networks import TextEncoderSpec

PAD_ID = 0  # of every T5 vocabulary


def open_tokenizer(path: Path, spec: TextEncoderSpec) -> Tokenizer:
    """A tokenizer that always gives `spec.num_tokens` ids a prompt.

    Raises:
        EngineMismatchError: the file is missing, damaged, or has more words than the encoder's table.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower type
        raise EngineMismatchError(
            f"tokenizer {path} can't be read ({error}); export it again"
        ) from error
    size = tokenizer.get_vocab_size()
    if size > spec.vocab_size:
        raise EngineMismatchError(
            f"tokenizer {path} has {size} words, the text encoder knows {spec.vocab_size}; "
            "take the tokenizer that belongs to the encoder"
        )
    tokenizer.enable_truncation(spec.num_tokens)
    tokenizer.enable_padding(length=spec.num_tokens, pad_id=PAD_ID, pad_token="<pad>")
    return tokenizer


def tokenize(
    tokenizer: Tokenizer, prompts: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ids, mask), both INT64 [n, tokens]; the mask is 1 where there is text."""
    encodings = tokenizer.encode_batch(list(prompts))
    ids = np.array([e.ids for e in encodings], dtype=np.int64)
    mask = np.array([e.attention_mask for e in encodings], dtype=np.int64)
    return ids, mask
