# SPDX-License-Identifier: Apache-2.0
"""The toy preset's checkpoint: where the trained one lies, and seeded random ones of the same layout."""

import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from predict2_spec.networks import TOY_VAE
from predict2_spec.presets import TOY

from .networks.dit import Dit
from .networks.text_encoder import TextEncoder
from .networks.vae import Vae
from .released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_FILES, GUARD_TOWER
from .toyworld.tokenizer import word_tokenizer

StateDict = dict[str, Tensor]

TRAINED = Path(__file__).resolve().parent / "toyworld" / "weights"  # a checkpoint folder

# Standard deviations are 1/sqrt(inputs), times these for the layers whose whole name matches.
_DIT_GAINS = {
    # Training starts from zeros here, which close every gate: text and time would do nothing.
    r".*adaln_modulation.*\.2|t_embedder\.1\.linear_2": 0.3,
}
_TEXT_ENCODER_GAINS = {
    r".*\.q": TOY.text_encoder.head_dim**-0.5,  # T5's attention doesn't divide its logits
    r".*\.embed_tokens": math.sqrt(TOY.text_encoder.width),  # rows of a table, not sums of inputs
}


def write_toy_checkpoint(folder: Path, seed: int = 0) -> None:
    """Write random files of the toy preset, at the paths in `folder` that the preset names.

    The pictures mean nothing; all else works as with the trained weights in `TRAINED`. Its frame guard is
    the trained one: one of random opinions would refuse clips by chance.
    Every file appears whole or not at all, and replaces one that is there.

    Args:
        folder: the checkpoint folder; made when missing.
        seed: 0 or more; equal seeds write equal weights.

    Raises:
        OSError: a file can't be written.
    """
    for path, state in toy_state_dicts(seed).items():
        with whole_file(folder / path) as part:
            part.write_bytes(save(state))  # save_file would hide it from other users
    with whole_file(folder / TOY.tokenizer_path) as part:
        part.write_text(word_tokenizer().to_str(pretty=True), encoding="utf-8")
    for file in GUARD_FILES:
        path = f"{TOY.frame_guard_path}/{file}"
        with whole_file(folder / path) as part:
            part.write_bytes((TRAINED / path).read_bytes())


def toy_state_dicts(seed: int) -> dict[str, StateDict]:
    """Random float32 weights by the preset's paths, under the names that released files have."""
    assert TOY.video2world is not None
    text2image, video2world = Dit(TOY.text2image), Dit(TOY.video2world)
    vae, text_encoder = Vae(TOY_VAE), TextEncoder(TOY.text_encoder)
    # A seed for each, so that a change to one network leaves the others' weights as they were.
    randomize(text2image, 4 * seed, _DIT_GAINS)
    randomize(video2world, 4 * seed + 1, _DIT_GAINS)
    randomize(vae, 4 * seed + 2, {})
    randomize(text_encoder, 4 * seed + 3, _TEXT_ENCODER_GAINS)
    return released_names(text2image, video2world, vae, text_encoder)


def released_names(
    text2image: Dit, video2world: Dit, vae: Vae, text_encoder: TextEncoder
) -> dict[str, StateDict]:
    """The networks' weights by the preset's paths, under the names that released files have."""
    return {
        TOY.text2image_path: {f"net.{k}": v for k, v in text2image.state_dict().items()},
        TOY.video2world_path: {f"net.{k}": v for k, v in video2world.state_dict().items()},
        TOY.vae_path: vae.state_dict(),
        TOY.text_encoder_path: {
            "shared.weight" if k == "encoder.embed_tokens.weight" else k: v
            for k, v in text_encoder.state_dict().items()
        },
    }


def guard_files(weights: Mapping[str, Tensor]) -> dict[str, bytes]:
    """A frame guard's files by their paths in its folder, from the state dict of a `FrameGuard`."""

    def part(name: str, prefix: str) -> StateDict:
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(name)}
        return {prefix + key: value.contiguous() for key, value in own.items()}

    return {
        GUARD_FACES: _saved(part("faces", "")),
        GUARD_TOWER: save(part("content.vision_model", "vision_model.")),
        GUARD_CLASSIFIER: _saved({"model": part("content.network", "network.")}),
    }


def _saved(values: Mapping[str, Any]) -> bytes:
    data = io.BytesIO()
    torch.save(values, data)
    return data.getvalue()


@torch.no_grad()
def randomize(module: nn.Module, seed: int, gains: Mapping[str, float]) -> None:
    """Give a module normal weights of deviation 1/sqrt(inputs), norms of 1 and biases of 0.

    Args:
        module: changed in place.
        seed: equal seeds give equal weights.
        gains: factors on the deviation of layers, by a pattern of their whole name.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        layer, _, kind = name.rpartition(".")
        if kind == "bias":
            parameter.zero_()
        elif parameter.numel() == len(parameter):  # a norm's weight, one number a channel
            parameter.fill_(1.0)
        else:
            inputs = parameter[0].numel()
            gain = math.prod(g for pattern, g in gains.items() if re.fullmatch(pattern, layer))
            parameter.normal_(0.0, gain / math.sqrt(inputs), generator=generator)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it on success and removed on failure.

    Raises:
        OSError: the folder or the file can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
