# SPDX-License-Identifier: Apache-2.0
"""Training of the toy's text encoder: from words to what they mean together."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from predict2_export.networks.text_encoder import TextEncoder
from predict2_spec.presets import TOY

from .fit import Stage, fit
from .muon import Muon
from .scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Scene, caption, random_scene
from .tokenizer import word_tokenizer

_ANSWERS = (tuple(COLOURS), SHAPES, tuple(BACKGROUNDS), tuple(MOTIONS))
_MASKED = 0.15  # of the words, for the network to guess from the others
BATCH = 64


def token_ids(tokenizer: Tokenizer, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, int64 [n, tokens]."""
    tokenizer.enable_truncation(TOY.text_encoder.num_tokens)
    tokenizer.enable_padding(length=TOY.text_encoder.num_tokens, pad_id=0, pad_token="<pad>")
    encodings = tokenizer.encode_batch(list(prompts))
    return torch.tensor([e.ids for e in encodings]), torch.tensor(
        [e.attention_mask for e in encodings]
    )


@torch.no_grad()
def embed(encoder: TextEncoder, tokenizer: Tokenizer, prompts: Sequence[str]) -> Tensor:
    """Embeddings [n, tokens, width] of prompts."""
    embeds: Tensor = encoder(*token_ids(tokenizer, prompts))
    return embeds


class _Reader(nn.Module):
    """The encoder with the heads that train it: the masked words, and what the first place knows."""

    def __init__(self) -> None:
        super().__init__()
        spec = TOY.text_encoder
        self.encoder = TextEncoder(spec)
        self.words = nn.Linear(spec.width, spec.vocab_size)
        self.answers = nn.ModuleList(nn.Linear(spec.width, len(names)) for names in _ANSWERS)


def _targets(scenes: Sequence[Scene]) -> list[Tensor]:
    rows = [(s.colour, s.shape, s.background, s.motion) for s in scenes]
    columns = zip(zip(*rows, strict=True), _ANSWERS, strict=True)
    return [torch.tensor([names.index(word) for word in words]) for words, names in columns]


def train_text(stage: Stage) -> nn.Module:
    """Train the encoder to say from a caption what is in the scene, and to guess masked words."""
    torch.manual_seed(0)
    reader, tokenizer = _Reader(), word_tokenizer()
    rng = np.random.default_rng()

    def loss_of(progress: float) -> Tensor:
        scenes = [random_scene(rng, 64, 64) for _ in range(BATCH)]
        ids, mask = token_ids(tokenizer, [caption(scene, rng) for scene in scenes])
        hidden = torch.from_numpy(rng.random(ids.shape) < _MASKED) & (mask > 0)
        guessed = reader.words(reader.encoder(torch.where(hidden, 2, ids), mask)[hidden])
        embeds = reader.encoder(ids, mask)
        pooled = embeds.sum(1) / mask.sum(1, keepdim=True)
        pairs = zip(reader.answers, _targets(scenes), strict=True)
        told = torch.stack([F.cross_entropy(head(pooled), target) for head, target in pairs])
        return F.cross_entropy(guessed, ids[hidden]) * 0.2 + told.sum()

    return fit(stage, reader, Muon(reader, lr=2e-3, plain=("encoder.encoder.embed",)), loss_of)


def trained_text(stage: Stage) -> TextEncoder:
    """The encoder of a finished stage."""
    reader = _Reader()
    reader.load_state_dict(torch.load(stage.path, weights_only=True)["average"])
    return reader.encoder.eval().requires_grad_(False)
