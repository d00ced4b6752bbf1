# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files -> state dicts under the original's names -> modules, refusing what doesn't fit.

Formats read: safetensors, torch.save files, and folders of either, sharded or not. Names read:
NVIDIA's and Wan's own, diffusers', transformers'.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from predict2_spec.errors import CheckpointError
from predict2_spec.networks import VaeSpec

StateDict = dict[str, Tensor]

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

# How torch.save's files began before they were zip archives; some T5 files on the hub still do.
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
_ZIP_MAGIC = b"PK\x03\x04"
# What torch's and zipfile's readers raise on damaged bytes, found by flipping bytes at random.
_DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)
_NUM_LISTED = 3  # keys of one kind that an error message spells out


def read_state_dict(path: Path) -> StateDict:
    """Read every tensor of a checkpoint onto the CPU, in its stored dtype and under its stored name.

    Torch files are mapped into memory where their format allows it, so reading one costs little
    until its tensors are used. Only plain tensors are read: nothing in a file can run code.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, or a folder that holds one checkpoint as one
            such file or as shards with their index.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, holds no tensors, or
            needs more than plain tensors to be read.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} doesn't exist; download the checkpoint there or correct the path"
        )
    files = _files_of_folder(path) if path.is_dir() else [path]
    state: StateDict = {}
    for file in files:
        state |= _read_file(file)
    return state


def _files_of_folder(folder: Path) -> list[Path]:
    """The checkpoint's files in a folder: what its index lists, or its only file; safetensors first."""
    for suffix in SUFFIXES:
        indexes = sorted(folder.glob(f"*{suffix}.index.json"))
        files = indexes or sorted(folder.glob(f"*{suffix}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{folder} holds several checkpoints ({_some(f.name for f in files)}); name one of them"
            )
        if files:
            return _shards(indexes[0]) if indexes else files
    raise CheckpointError(
        f"{folder} holds no checkpoint ({', '.join(SUFFIXES)}); download it there or correct the path"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        # A shard lies beside its index; an index from elsewhere must not point to other files.
        shards = [index.parent / Path(name).name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no readable index of shards ({_short(error)}); download it again"
        ) from error
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(shards)} shards ({_some(missing)}); download them"
        )
    return shards


def _read_file(path: Path) -> StateDict:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise CheckpointError(
        f"{path} has the suffix {path.suffix!r}; checkpoints end in {', '.join(SUFFIXES)}"
    )


def _read_safetensors(path: Path) -> StateDict:
    try:
        state: StateDict = load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file ({_short(error)}); download it again"
        ) from error
    return state


def _read_torch(path: Path) -> StateDict:
    zipped = _is_zip(path)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path} asks for more than plain tensors, which could run code while it is read; "
            "save its tensors alone, as safetensors, where you trust the file"
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    tensors = _tensors(values)
    if not tensors:
        found = _some(values) if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(
            f"{path} holds no tensors at its top level, only {found or 'nothing'}; "
            "save the state dict by itself"
        )
    return tensors


def _is_zip(path: Path) -> bool:
    """Whether torch wrote the file as a zip archive; refuses what torch never wrote."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_MAGIC))
        zipped = zipfile.is_zipfile(path)
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if start.startswith(_ZIP_MAGIC) and not zipped:
        raise CheckpointError(f"{path} is cut short; download it again")
    if not zipped and start != _LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} is no file of torch.save: it begins with {start[:8]!r}; download it again"
        )
    return zipped


def _tensors(values: object) -> StateDict:
    """The tensors of a flat dict; other values in it, such as step counts, are no weights."""
    items: dict[Any, Any] = values if isinstance(values, dict) else {}
    return {str(key): value for key, value in items.items() if isinstance(value, Tensor)}


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} can't be read ({_short(error)}); download it again")


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]:.100}"


def _some(names: Iterable[Any]) -> str:
    listed = [str(name) for name in names]
    more = ", ..." if len(listed) > _NUM_LISTED else ""
    return ", ".join(listed[:_NUM_LISTED]) + more


# What training left in the files beside the weights, and tables that the network makes itself.
_DIT_IGNORED = re.compile(
    r"accum_(video_sample_counter|image_sample_counter|iteration|train_in_hours)"
    r"|pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)"
    r"|(.*\.)?_extra_state"
)
_DIT_NAMES = {  # diffusers' CosmosTransformer3DModel -> the original
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
_DIT_BLOCK_NAMES = {
    "norm1.linear_1": "adaln_modulation_self_attn.1",
    "norm1.linear_2": "adaln_modulation_self_attn.2",
    "norm2.linear_1": "adaln_modulation_cross_attn.1",
    "norm2.linear_2": "adaln_modulation_cross_attn.2",
    "norm3.linear_1": "adaln_modulation_mlp.1",
    "norm3.linear_2": "adaln_modulation_mlp.2",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    **{
        f"{theirs}.{their_layer}": f"{ours}.{our_layer}"
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for their_layer, our_layer in (
            ("to_q", "q_proj"),
            ("to_k", "k_proj"),
            ("to_v", "v_proj"),
            ("to_out.0", "output_proj"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        )
    },
}


def dit_state_dict(state: Mapping[str, Tensor], *, ema: bool = False) -> StateDict:
    """A denoiser's weights under the original's names without prefix.

    Args:
        state: NVIDIA's names with `net.` (and `net_ema.`) before them or without, or diffusers'.
            Names of neither kind are left as they are, for `load_strict` to refuse.
        ema: take the moving average of the weights, which post-training keeps beside them.

    Raises:
        CheckpointError: `ema` was asked for and the checkpoint holds none.
    """
    prefix = "net_ema." if ema else "net."
    if ema and not any(key.startswith(prefix) for key in state):
        raise CheckpointError(
            f"the checkpoint holds no averaged weights ({prefix}*); load it without ema"
        )
    if any(key.startswith(prefix) for key in state):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {_dit_name(key): v for key, v in state.items() if not _DIT_IGNORED.fullmatch(key)}


def _dit_name(key: str) -> str:
    module, _, parameter = key.rpartition(".")
    if block := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module):
        number, layer = block.groups()
        return f"blocks.{number}.{_DIT_BLOCK_NAMES.get(layer, layer)}.{parameter}"
    return f"{_DIT_NAMES[module]}.{parameter}" if module in _DIT_NAMES else key


_VAE_LAYERS = {  # of a residual block
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_VAE_MODULES = {
    "conv_in": "conv1",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
}


def vae_state_dict(state: Mapping[str, Tensor], spec: VaeSpec) -> StateDict:
    """A VAE's weights under the names of the released Wan 2.1 file.

    Args:
        state: those names already, or the names of diffusers' AutoencoderKLWan.
        spec: says how many blocks a level has, which diffusers' names count and Wan's don't.
    """
    if "encoder.conv_in.weight" not in state:
        return dict(state)
    return {_vae_name(key, spec): value for key, value in state.items()}


def _vae_name(key: str, spec: VaeSpec) -> str:
    key = re.sub(r"^quant_conv\.", "conv1.", key)
    key = re.sub(r"^post_quant_conv\.", "conv2.", key)
    key = re.sub(  # before other names become `conv1`
        rf"(resnets\.\d|down_blocks\.\d+)\.({'|'.join(_VAE_LAYERS)})\.",
        lambda match: f"{match[1]}.{_VAE_LAYERS[match[2]]}.",
        key,
    )
    key = re.sub(
        rf"^(encoder|decoder)\.({'|'.join(map(re.escape, _VAE_MODULES))})\.",
        lambda match: f"{match[1]}.{_VAE_MODULES[match[2]]}.",
        key,
    )
    key = re.sub(r"^encoder\.down_blocks\.", "encoder.downsamples.", key)
    level_size = (
        spec.num_blocks + 2
    )  # a decoder level: one block more than spec's, and the resampler
    key = re.sub(
        r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.",
        lambda match: f"decoder.upsamples.{int(match[1]) * level_size + int(match[2])}.",
        key,
    )
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda match: f"decoder.upsamples.{int(match[1]) * level_size + level_size - 1}.",
        key,
    )


def text_encoder_state_dict(state: Mapping[str, Tensor]) -> StateDict:
    """A T5's encoder under transformers' names, its embedding stored once as the encoder's own."""
    encoder = {k: v for k, v in state.items() if not k.startswith(("decoder.", "lm_head."))}
    # T5 has one embedding; files name it `shared`, the encoder's, or both.
    shared = encoder.pop("shared.weight", None)
    if shared is not None:
        encoder.setdefault("encoder.embed_tokens.weight", shared)
    return encoder


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give a module exactly these weights, in the dtype of its parameters.

    Tensors of that dtype are taken over without a copy; so a module on the meta device costs no
    more memory than the checkpoint.

    Args:
        module: changed in place; its parameters may be on the meta device.
        state: a tensor for each of the module's parameters, and no other.
        source: what the message of an error calls the checkpoint, such as its path.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape.
    """
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    wrong = [
        f"{key} is {list(state[key].shape)}, not {list(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    problems = [f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in kinds.items() if keys]
    if problems:
        raise CheckpointError(
            f"{source} doesn't fit {type(module).__name__}: of {len(wanted)} tensors "
            f"{'; '.join(problems)}; use the checkpoint that the preset names"
        )
    dtype = next(module.parameters()).dtype
    module.load_state_dict({key: value.to(dtype) for key, value in state.items()}, assign=True)
