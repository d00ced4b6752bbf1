# SPDX-License-Identifier: Apache-2.0
"""How each stage's engine is made: which weights, which module, which graphs, which limits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from predict2_spec import tensors
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import LATENT_CHANNELS, DitSpec, TextEncoderSpec
from predict2_spec.presets import Preset, Task
from predict2_spec.video import PATCH

from .checkpoint.files import read_checkpoint
from .checkpoint.fit import check_fit, load_strict
from .checkpoint.lora import merge_injected, merge_lora, read_adapter
from .checkpoint.names import dit_state_dict, text_encoder_state_dict, vae_state_dict
from .checkpoint.stored import StoredTensor
from .networks.dit import Dit
from .networks.export_graph import ExportGraph
from .networks.text_encoder import TextEncoder
from .networks.vae import Vae
from .networks.vae_graphs import export_graphs
from .verify import FLOAT32, Limits

Graphs = dict[str, ExportGraph]
Weights = Mapping[str, StoredTensor]
EXAMPLE_PIXELS = (64, 48)  # the VAE's example; small, its sides are free in the graph


@dataclass(frozen=True)
class PostTrained:
    """A denoiser's weights other than the preset's own."""

    checkpoint: Path | None = None  # instead of the file that the preset names
    ema: bool = False  # its moving average, which post-training keeps beside the weights
    adapter: Path | None = None  # a LoRA file or folder, added to the weights
    alpha: float | None = (
        None  # of the adapter, or of one in the checkpoint; else the adapter's own, else its rank
    )


@dataclass(frozen=True)
class Recipe:
    """One engine to build."""

    network: str  # the stage it serves
    spec: object  # the network's hyper-parameters
    checkpoint: Path
    make: Callable[[], nn.Module]  # the network's constructor
    rename: Callable[[Weights], dict[str, StoredTensor]]  # to the module's own names
    graphs: Callable[[nn.Module], Graphs]
    limits: Limits = FLOAT32
    precision: str = "fp32"
    device: str = "cpu"
    tokenizer: Path | None = None  # goes with a text encoder
    post_trained: PostTrained = PostTrained()

    def check_lowerable(self) -> None:
        """Refuse before any work what no engine of this version can run.

        Raises:
            InvalidRequestError: the network's attention is sparse.
        """
        if isinstance(self.spec, DitSpec) and self.spec.neighborhoods:
            raise InvalidRequestError(
                f"{self.checkpoint} is a network with sparse attention, which no engine of this version runs; "
                "take the preset of the same name without -sparse"
            )

    @property
    def files(self) -> list[Path]:
        """What the engine is made from."""
        return [*self.weight_files, *([self.tokenizer] if self.tokenizer else [])]

    @property
    def weight_files(self) -> list[Path]:
        """Where its weights come from."""
        adapter = self.post_trained.adapter
        return [self.checkpoint, *([adapter] if adapter else [])]

    def weights(self) -> dict[str, StoredTensor]:
        """The values of the module's parameters, not read yet.

        Raises:
            CheckpointError: a file is damaged or holds other weights.
        """
        state = self.rename(read_checkpoint(self.checkpoint))
        with torch.device("meta"):
            check_fit(self.make(), state, str(self.checkpoint))
        return state

    def module(self, weights: Weights) -> nn.Module:
        """The network with these weights, ready to infer."""
        with torch.device("meta"):
            module = self.make()
        load_strict(module, weights, str(self.checkpoint))
        return module.eval().requires_grad_(False)


def recipes(
    preset: Preset,
    checkpoints: Path,
    device: str = "cpu",
    post_trained: Mapping[Task, PostTrained] | None = None,
) -> list[Recipe]:
    """Every engine a preset needs, small ones first.

    Args:
        preset: what to serve.
        checkpoints: folder with the files the preset names.
        device: where the engines shall run, cpu or cuda.
        post_trained: weights of text2image or video2world other than the preset's.
    """
    vae, text = preset.vae, preset.text_encoder
    found = [
        Recipe(
            tensors.TEXT_ENCODER.name,
            text,
            checkpoints / preset.text_encoder_path,
            partial(TextEncoder, text),
            text_encoder_state_dict,
            partial(_text_encoder_graphs, text),
            tokenizer=checkpoints / preset.tokenizer_path,
        ),
        *(
            Recipe(
                name,
                vae,
                checkpoints / preset.vae_path,
                partial(Vae, vae),
                partial(vae_state_dict, spec=vae),
                partial(_vae_graphs, name),
            )
            for name in (tensors.VAE_ENCODER.name, tensors.VAE_DECODER.name)
        ),
        _dit_recipe(
            tensors.TEXT2IMAGE_DENOISER.name,
            preset.text2image,
            checkpoints / preset.text2image_path,
        ),
    ]
    if preset.video2world:
        path = checkpoints / preset.video2world_path
        found.append(_dit_recipe(tensors.VIDEO2WORLD_DENOISER.name, preset.video2world, path))
    for task, other in (post_trained or {}).items():
        found = [_changed(r, other) if r.network == f"{task}_denoiser" else r for r in found]
    needed = {stage.name for stage in tensors.served_stages(preset)}
    return [replace(r, device=device) for r in found if r.network in needed]


def _dit_recipe(network: str, spec: DitSpec, checkpoint: Path) -> Recipe:
    return Recipe(
        network, spec, checkpoint, partial(Dit, spec), dit_state_dict, partial(_dit_graphs, spec)
    )


def _changed(recipe: Recipe, other: PostTrained) -> Recipe:
    checkpoint = other.checkpoint or recipe.checkpoint

    def rename(state: Weights) -> dict[str, StoredTensor]:
        weights = merge_injected(dit_state_dict(state, ema=other.ema), other.alpha, str(checkpoint))
        if not other.adapter:
            return weights
        found = read_adapter(other.adapter)
        alpha = found.alpha if other.alpha is None else other.alpha
        return merge_lora(weights, found.tensors, alpha, str(other.adapter))

    return replace(recipe, checkpoint=checkpoint, post_trained=other, rename=rename)


def _text_encoder_graphs(spec: TextEncoderSpec, module: nn.Module) -> Graphs:
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


def _vae_graphs(network: str, module: nn.Module) -> Graphs:
    assert isinstance(module, Vae)
    return export_graphs(module, *EXAMPLE_PIXELS)[network]


def _dit_graphs(spec: DitSpec, module: nn.Module) -> Graphs:
    batch, frames, tokens = Dim("batch"), Dim("frames"), Dim("tokens")
    rows, columns = Dim("rows"), Dim("columns")
    size, grid = (2, 3, 4, 6), {2: frames, 3: PATCH * rows, 4: PATCH * columns}
    like = next(module.parameters())
    args = [
        like.new_zeros(size[0], LATENT_CHANNELS, *size[1:]),
        like.new_full(size[:2], 0.5),
        like.new_zeros(size[0], 7, spec.text_width),
    ]
    names = ["hidden_states", "timestep", "encoder_hidden_states"]
    shapes: list[dict[int, object]] = [
        {0: batch, **grid},
        {0: batch, 1: frames},
        {0: batch, 1: tokens},
    ]
    if spec.condition_mask:
        args.append(like.new_zeros(size[0], 1, *size[1:]))
        names.append("condition_mask")
        shapes.append({0: batch, **grid})
    return {"main": ExportGraph(module, tuple(args), tuple(names), ("velocity",), tuple(shapes))}
