# SPDX-License-Identifier: Apache-2.0
"""Weights -> a module, tensor by tensor; what doesn't fit is refused before any number is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from predict2_spec.errors import CheckpointError

from .kinds import kind_of, title, variant_of
from .stored import StoredTensor
from .wording import some

Weights = Mapping[str, Tensor] | Mapping[str, StoredTensor]
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Misfits:
    """What keeps weights from being a module's; empty lists when nothing does."""

    missing: list[str]
    unexpected: list[str]
    misshapen: list[str]  # with both shapes
    coded: list[
        str
    ]  # with the dtype: fp8 or integers, which mean nothing to a module without scales

    @property
    def problems(self) -> list[str]:
        """A phrase for each kind that occurs."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.misshapen,
            "of no float dtype": self.coded,
        }
        return [f"{len(keys)} {kind} ({some(keys)})" for kind, keys in kinds.items() if keys]

    def __len__(self) -> int:
        return sum(map(len, (self.missing, self.unexpected, self.misshapen, self.coded)))


def misfits(wanted: Weights, state: Weights) -> Misfits:
    """Compare weights with those of a module's state dict by name, shape and kind of dtype."""
    both = [key for key in wanted if key in state]
    return Misfits(
        missing=[key for key in wanted if key not in state],
        unexpected=[key for key in state if key not in wanted],
        misshapen=[
            f"{key} is {list(state[key].shape)}, not {list(wanted[key].shape)}"
            for key in both
            if tuple(state[key].shape) != tuple(wanted[key].shape)
        ],
        coded=[
            f"{key} is {str(state[key].dtype).removeprefix('torch.')}"
            for key in both
            if wanted[key].dtype.is_floating_point
            and state[key].dtype not in (*_FLOATS, wanted[key].dtype)
        ],
    )


def check_fit(module: nn.Module, state: Weights, source: str) -> None:
    """Refuse weights that aren't exactly a module's, by names, shapes and dtypes alone.

    Args:
        module: may be on the meta device.
        state: should have a tensor for each of the module's, and no other.
        source: what the message of an error calls the checkpoint, such as its path.

    Raises:
        CheckpointError: tensors are missing, unexpected, of another shape or no floats; the
            message guesses why.
    """
    wanted: Weights = module.state_dict()
    found = misfits(wanted, state)
    if found:
        raise CheckpointError(
            f"{source} doesn't fit {type(module).__name__}: of {len(wanted)} tensors "
            f"{'; '.join(found.problems)}; {likely_cause(wanted, state, found)}"
        )


def likely_cause(wanted: Weights, state: Weights, found: Misfits) -> str:
    """Why weights may not fit, and what to do."""
    if state and all(key.startswith("net_ema.") for key in state):
        return "it holds only averaged weights: load them with ema (build --load-ema)"
    if kind_of(state) == "LoRA adapter":
        return "it looks like a LoRA adapter: give it together with the checkpoint that it changes (build --lora)"
    if any(".lora_" in key or ".base_layer." in key for key in state):
        return "it holds LoRA weights beside the others: merge them first (build --dit-path does)"
    if variant := variant_of(state):
        return (
            f"it looks like {variant}, which isn't served; use the checkpoint that the preset names"
        )
    theirs, ours = _title(state), _title(wanted)
    if theirs != ours and theirs and ours:
        return f"it looks like a {theirs}, not a {ours}; use the checkpoint that the preset names"
    if not found.missing and not found.unexpected and not found.misshapen:
        return "it's quantized: use the checkpoint in bf16 or fp32"
    if kind_of(wanted) == "T5 encoder" and not theirs:
        return "it holds no T5 encoder, perhaps the decoder alone; use the whole T5 or its encoder"
    if theirs == ours and theirs and len(found) == len(found.missing):
        return "it looks like a part of one; use the whole checkpoint"
    return "use the checkpoint that the preset names"


def _title(state: Weights) -> str:
    return title(kind_of(state), {key: tuple(value.shape) for key, value in state.items()})


def load_strict(module: nn.Module, state: Weights, source: str) -> None:
    """Give a module exactly these weights, in the dtypes of its own.

    Tensors are read and converted one by one. So a module on the meta device costs the memory of
    its weights in its own dtype, and for a moment that of one stored tensor.

    Args:
        module: changed in place; on the meta device its weights end up on the CPU.
        state: a tensor for each of the module's, and no other.
        source: what the message of an error calls the checkpoint, such as its path.

    Raises:
        CheckpointError: as of `check_fit`, and nothing was changed; or the file turned out
            damaged while it was read.
    """
    check_fit(module, state, source)
    for key, old in module.state_dict(keep_vars=True).items():
        value = state[key]
        tensor = value.load() if isinstance(value, StoredTensor) else value
        device = "cpu" if old.is_meta else old.device
        tensor = tensor.to(device, old.dtype).contiguous()
        path, _, name = key.rpartition(".")
        if isinstance(old, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
        setattr(module.get_submodule(path), name, tensor)
