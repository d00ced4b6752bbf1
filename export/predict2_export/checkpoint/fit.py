# SPDX-License-Identifier: Apache-2.0
"""Weights -> a module, tensor by tensor; what doesn't fit is refused before any number is read."""

from collections.abc import Mapping

from torch import Tensor, nn

from predict2_spec.errors import CheckpointError

from .stored import StoredTensor
from .wording import some

Weights = Mapping[str, Tensor] | Mapping[str, StoredTensor]


def check_fit(module: nn.Module, state: Weights, source: str) -> None:
    """Refuse weights that aren't exactly a module's, by names and shapes alone.

    Args:
        module: may be on the meta device.
        state: should have a tensor for each of the module's, and no other.
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
        if key in state and tuple(state[key].shape) != tuple(tensor.shape)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    problems = [f"{len(keys)} {kind} ({some(keys)})" for kind, keys in kinds.items() if keys]
    if problems:
        raise CheckpointError(
            f"{source} doesn't fit {type(module).__name__}: of {len(wanted)} tensors "
            f"{'; '.join(problems)}; use the checkpoint that the preset names"
        )


def load_strict(module: nn.Module, state: Weights, source: str) -> None:
    """Give a module exactly these weights, in the dtypes of its own.

    Tensors are read and converted one by one. So a module on the meta device costs the memory of
    its weights in its own dtype, and for a moment that of one stored tensor.

    Args:
        module: changed in place; on the meta device its weights end up on the CPU.
        state: a tensor for each of the module's, and no other.
        source: what the message of an error calls the checkpoint, such as its path.

    Raises:
        CheckpointError: tensors are missing, unexpected or of another shape, and nothing was
            changed; or the file turned out damaged while it was read.
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
