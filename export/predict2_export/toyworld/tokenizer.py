# SPDX-License-Identifier: Apache-2.0
"""The toy's tokenizer: one id for each word of the world."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from predict2_spec.presets import TOY

from .scene import vocabulary

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2 as in every T5 vocabulary


def word_tokenizer() -> Tokenizer:
    """A tokenizer of the world's words: lower case, punctuation apart, `</s>` last, others `<unk>`."""
    words = (*SPECIAL_TOKENS, *vocabulary())
    assert len(words) <= TOY.text_encoder.vocab_size
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocab=ids, unk_token="<unk>"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return tokenizer
