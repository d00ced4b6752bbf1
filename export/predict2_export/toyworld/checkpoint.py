# SPDX-License-Identifier: Apache-2.0
"""The trained networks as the toy preset's checkpoint files, and back."""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.checkpoint.fit import load_strict
from predict2_export.checkpoint.names import dit_state_dict, text_encoder_state_dict, vae_state_dict
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_export.toy import released_names, whole_file
from predict2_spec.networks import TOY_VAE
from predict2_spec.presets import TOY

from .quality import Networks
from .tokenizer import word_tokenizer


def save_networks(networks: Networks, folder: Path) -> None:
    """Write the preset's files in float16 under the names that released files have."""
    states = released_names(
        networks.text2image, networks.video2world, networks.vae, networks.text_encoder
    )
    for path, state in states.items():
        with whole_file(folder / path) as part:
            part.write_bytes(save({name: _half(value) for name, value in state.items()}))
    with whole_file(folder / TOY.tokenizer_path) as part:
        part.write_text(word_tokenizer().to_str(pretty=True), encoding="utf-8")


def _half(value: Tensor) -> Tensor:
    return value.to(torch.float16).contiguous()


def load_networks(folder: Path) -> Networks:
    """The preset's networks with the weights in a checkpoint folder, in float32."""
    spec = TOY.video2world
    assert spec is not None
    vae = Vae(TOY_VAE)
    _load(vae, vae_state_dict(read_checkpoint(folder / TOY.vae_path), TOY_VAE))
    text_encoder = TextEncoder(TOY.text_encoder)
    _load(text_encoder, text_encoder_state_dict(read_checkpoint(folder / TOY.text_encoder_path)))
    dits = []
    for dit_spec, path in ((TOY.text2image, TOY.text2image_path), (spec, TOY.video2world_path)):
        dit = Dit(dit_spec)
        _load(dit, dit_state_dict(read_checkpoint(folder / path)))
        dits.append(dit)
    return Networks(vae, text_encoder, *dits)


def _load(module: nn.Module, state: dict[str, StoredTensor]) -> None:
    load_strict(module, state, "the toy checkpoint")
    module.eval().requires_grad_(False)
