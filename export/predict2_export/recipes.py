# SPDX-License-Identifier: Apache-2.0
"""How each stage's engine is made: which weights, which module, which graphs, which limits."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim

from predict2_runtime.stages.text_encoder import TOKENIZER_FILE
from predict2_spec import tensors
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import (
    LATENT_CHANNELS,
    DitSpec,
    FrameGuardSpec,
    ScriptedVaeSpec,
    TextEncoderSpec,
    VaeSpec,
)
from predict2_spec.presets import Preset, Task
from predict2_spec.video import PATCH

from .checkpoint.files import read_checkpoint
from .checkpoint.fit import check_fit, load_strict
from .checkpoint.lora import merge_injected, merge_lora, read_adapter
from .checkpoint.names import (
    classifier_state_dict,
    dit_state_dict,
    face_detector_state_dict,
    text_encoder_state_dict,
    vae_state_dict,
    vision_tower_state_dict,
)
from .checkpoint.scripted import check_trusted, read_scripted_decoder
from .checkpoint.stored import StoredTensor
from .networks import scripted_vae
from .networks.dit import Dit
from .networks.export_graph import ExportGraph
from .networks.frame_guard import FrameGuard
from .networks.text_encoder import TextEncoder
from .networks.vae import Vae
from .networks.vae_graphs import export_graphs
from .released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_TOWER
from .to_onnx import hollow_graphs
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
    # Of the adapter, or of one inside the checkpoint; None: what the adapter says, or else its rank.
    alpha: float | None = None


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

    def write_beside(self, engine: Path) -> None:
        """Put into an engine's folder what belongs to it: a text encoder's tokenizer."""
        if self.tokenizer:
            shutil.copyfile(self.tokenizer, engine / TOKENIZER_FILE)

    @property
    def choices(self) -> str:
        """What the owner chose beside the files, as text; with other choices it is another engine."""
        return f"{self.post_trained.ema} {self.post_trained.alpha}"

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

    def lowerable(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Graphs]:
        """The network as it is traced, its parameters of this type and without storage, and its graphs."""
        return hollow_graphs(self.make, self.graphs, dtype)


@dataclass(frozen=True)
class ScriptedRecipe(Recipe):
    """An engine made from a program: the file holds the network itself, not weights for one of ours."""

    trusted: bool = False  # to read the file is to run it

    def check_lowerable(self) -> None:
        """Refuse before any work a program that nobody vouched for.

        Raises:
            CheckpointError: it isn't trusted.
        """
        check_trusted(self.checkpoint, self.trusted)

    def weights(self) -> dict[str, StoredTensor]:
        """Nothing: the program has them."""
        return {}

    def module(self, weights: Weights) -> nn.Module:
        """The program."""
        return self.make()

    def lowerable(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Graphs]:
        """The program as a graph of torch's, weights included, and what is traced of it.

        Raises:
            InvalidRequestError: in another type than float32, as its casts were traced for that one.
        """
        if dtype != torch.float32:
            raise InvalidRequestError(
                f"{self.checkpoint} is a program and can't be lowered in {dtype}; take --dtype float32"
            )
        network = self.make()
        assert isinstance(network, scripted_vae.ImageDecoder)
        network = scripted_vae.lowerable(network, str(self.checkpoint))
        return network, self.graphs(network)


_GUARD_PARTS = (  # of the module: its name, its file, and how that names its weights
    ("faces", GUARD_FACES, face_detector_state_dict),
    ("content.vision_model", GUARD_TOWER, vision_tower_state_dict),
    ("content.network", GUARD_CLASSIFIER, classifier_state_dict),
)


@dataclass(frozen=True)
class FrameGuardRecipe(Recipe):
    """An engine of two networks; its checkpoint is a folder with a file for each of three parts."""

    @property
    def weight_files(self) -> list[Path]:
        """The files of the parts."""
        return [self.checkpoint / file for _, file, _ in _GUARD_PARTS]

    def weights(self) -> dict[str, StoredTensor]:
        """The values of all parts' parameters, not read yet.

        Raises:
            CheckpointError: a file is damaged or holds other weights.
        """
        with torch.device("meta"):
            guard = self.make()
        found = {}
        for part, file, rename in _GUARD_PARTS:
            state = rename(read_checkpoint(self.checkpoint / file))
            check_fit(guard.get_submodule(part), state, str(self.checkpoint / file))
            found.update({f"{part}.{key}": value for key, value in state.items()})
        return found


def recipes(
    preset: Preset,
    checkpoints: Path,
    device: str = "cpu",
    post_trained: Mapping[Task, PostTrained] | None = None,
    *,
    trust_torchscript: bool = False,
) -> list[Recipe]:
    """Every engine a preset needs, in the order of its stages.

    Args:
        preset: what to serve.
        checkpoints: folder with the files the preset names.
        device: where the engines shall run, cpu or cuda.
        post_trained: weights of text2image or video2world other than the preset's.
        trust_torchscript: run the programs of checkpoints that are programs.
    """
    text = preset.text_encoder
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
        *_vae_recipes(preset.vae, checkpoints / preset.vae_path, trust_torchscript),
        _dit_recipe(
            tensors.TEXT2IMAGE_DENOISER.name,
            preset.text2image,
            checkpoints / preset.text2image_path,
        ),
    ]
    if preset.video2world:
        path = checkpoints / preset.video2world_path
        found.append(_dit_recipe(tensors.VIDEO2WORLD_DENOISER.name, preset.video2world, path))
    found.append(_guard_recipe(preset.frame_guard, checkpoints / preset.frame_guard_path))
    for task, other in (post_trained or {}).items():
        found = [_changed(r, other) if r.network == f"{task}_denoiser" else r for r in found]
    needed = {stage.name for stage in tensors.served_stages(preset)}
    return [replace(r, device=device) for r in found if r.network in needed]


def _vae_recipes(spec: VaeSpec | ScriptedVaeSpec, checkpoint: Path, trusted: bool) -> list[Recipe]:
    encoder, decoder = tensors.VAE_ENCODER.name, tensors.VAE_DECODER.name
    if isinstance(spec, ScriptedVaeSpec):
        make = partial(_scripted_decoder, checkpoint, trusted)
        graphs = _scripted_graphs
        return [ScriptedRecipe(decoder, spec, checkpoint, make, dict, graphs, trusted=trusted)]
    rename = partial(vae_state_dict, spec=spec)
    return [
        Recipe(name, spec, checkpoint, partial(Vae, spec), rename, partial(_vae_graphs, name))
        for name in (encoder, decoder)
    ]


def _scripted_decoder(checkpoint: Path, trusted: bool) -> nn.Module:
    found = read_scripted_decoder(checkpoint, trusted=trusted)
    return scripted_vae.scripted_image_decoder(
        found.program, found.mean, found.std, str(checkpoint)
    )


def _scripted_graphs(module: nn.Module) -> Graphs:
    # The name that a streaming decoder's first chunk has; nothing follows a picture.
    return {"first": scripted_vae.export_graph(module, *EXAMPLE_PIXELS)}


def _dit_recipe(network: str, spec: DitSpec, checkpoint: Path) -> Recipe:
    return Recipe(
        network, spec, checkpoint, partial(Dit, spec), dit_state_dict, partial(_dit_graphs, spec)
    )


def _guard_recipe(spec: FrameGuardSpec, folder: Path) -> Recipe:
    make = partial(FrameGuard, spec)
    return FrameGuardRecipe(tensors.GUARDRAIL_VIDEO.name, spec, folder, make, dict, _guard_graphs)


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


def _guard_graphs(module: nn.Module) -> Graphs:
    assert isinstance(module, FrameGuard)
    return module.graphs()


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
