# SPDX-License-Identifier: Apache-2.0
"""How each stage's engine is made: which file, which module, which graphs, which limits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from predict2_spec import tensors
from predict2_spec.networks import LATENT_CHANNELS, DitSpec, TextEncoderSpec, VaeSpec
from predict2_spec.presets import Preset
from predict2_spec.video import PATCH

from .checkpoint.files import read_checkpoint
from .checkpoint.fit import load_strict
from .checkpoint.names import dit_state_dict, text_encoder_state_dict, vae_state_dict
from .checkpoint.stored import StoredTensor
from .networks.dit import Dit
from .networks.export_graph import ExportGraph
from .networks.text_encoder import TextEncoder
from .networks.vae import Vae
from .networks.vae_graphs import export_graphs
from .verify import FLOAT32, Limits

Graphs = dict[str, ExportGraph]
EXAMPLE_PIXELS = (64, 48)  # the VAE's example; small, its sides are free in the graph


@dataclass(frozen=True)
class Recipe:
    """One engine to build."""

    network: str  # the stage it serves
    spec: object  # the network's hyper-parameters
    checkpoint: Path
    graphs: Callable[[Path], Graphs]  # from the checkpoint; modules in eval mode
    limits: Limits = FLOAT32
    precision: str = "fp32"
    device: str = "cpu"
    tokenizer: Path | None = None  # goes with a text encoder

    @property
    def files(self) -> list[Path]:
        """What the engine is made from."""
        return [self.checkpoint, *([self.tokenizer] if self.tokenizer else [])]


def recipes(preset: Preset, checkpoints: Path, device: str = "cpu") -> list[Recipe]:
    """Every engine a preset needs, small ones first."""
    vae, text = checkpoints / preset.vae_path, checkpoints / preset.text_encoder_path
    needed = {stage.name for stage in tensors.served_stages(preset)}
    found = [
        Recipe(
            tensors.TEXT_ENCODER.name,
            preset.text_encoder,
            text,
            partial(_text_encoder_graphs, preset.text_encoder),
            tokenizer=checkpoints / preset.tokenizer_path,
        ),
        *(
            Recipe(name, preset.vae, vae, partial(_vae_graphs, preset.vae, name))
            for name in (tensors.VAE_ENCODER.name, tensors.VAE_DECODER.name)
        ),
        _dit_recipe(
            tensors.TEXT2IMAGE_DENOISER.name,
            preset.text2image,
            checkpoints / preset.text2image_path,
        ),
    ]
    if preset.video2world:
        found.append(
            _dit_recipe(
                tensors.VIDEO2WORLD_DENOISER.name,
                preset.video2world,
                checkpoints / preset.video2world_path,
            )
        )
    return [replace(r, device=device) for r in found if r.network in needed]


def _dit_recipe(network: str, spec: DitSpec, checkpoint: Path) -> Recipe:
    return Recipe(network, spec, checkpoint, partial(_dit_graphs, spec))


def _loaded(module: nn.Module, state: dict[str, StoredTensor], path: Path) -> None:
    load_strict(module, state, str(path))
    module.eval().requires_grad_(False)


def _text_encoder_graphs(spec: TextEncoderSpec, path: Path) -> Graphs:
    module = TextEncoder(spec)
    _loaded(module, text_encoder_state_dict(read_checkpoint(path)), path)
    ids = torch.zeros(2, spec.num_tokens, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate((5, spec.num_tokens)):  # a short prompt and one that fills the row
        ids[row, :length] = torch.arange(length) % (spec.vocab_size - 1) + 1
        mask[row, :length] = 1
    batch = {0: Dim("batch")}
    return {
        "main": ExportGraph(
            module, (ids, mask), ("input_ids", "attention_mask"), ("prompt_embeds",), (batch, batch)
        )
    }


def _vae_graphs(spec: VaeSpec, network: str, path: Path) -> Graphs:
    module = Vae(spec)
    _loaded(module, vae_state_dict(read_checkpoint(path), spec), path)
    return export_graphs(module, *EXAMPLE_PIXELS)[network]


def _dit_graphs(spec: DitSpec, path: Path) -> Graphs:
    module = Dit(spec)
    _loaded(module, dit_state_dict(read_checkpoint(path)), path)
    batch, frames, tokens = Dim("batch"), Dim("frames"), Dim("tokens")
    rows, columns = Dim("rows"), Dim("columns")
    size, grid = (2, 3, 4, 6), {2: frames, 3: PATCH * rows, 4: PATCH * columns}
    args = [
        torch.zeros(size[0], LATENT_CHANNELS, *size[1:]),
        torch.full(size[:2], 0.5),
        torch.zeros(size[0], 7, spec.text_width),
    ]
    names = ["hidden_states", "timestep", "encoder_hidden_states"]
    shapes: list[dict[int, object]] = [
        {0: batch, **grid},
        {0: batch, 1: frames},
        {0: batch, 1: tokens},
    ]
    if spec.condition_mask:
        args.append(torch.zeros(size[0], 1, *size[1:]))
        names.append("condition_mask")
        shapes.append({0: batch, **grid})
    return {"main": ExportGraph(module, tuple(args), tuple(names), ("velocity",), tuple(shapes))}
