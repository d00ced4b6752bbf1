# SPDX-License-Identifier: Apache-2.0
"""The fast image tokenizer's file: TorchScript programs and two rows of statistics, saved by torch.save.

To load TorchScript is to run code of whoever made the file, so it is done only where its owner said so.
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.jit import ScriptModule, load
from torch.serialization import get_unsafe_globals_in_checkpoint

from predict2_spec.errors import CheckpointError
from predict2_spec.networks import LATENT_CHANNELS

from .wording import damaged, some

TRUST_FLAG = "--trust-torchscript"
# What torch's readers raise on damaged bytes.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
)


@dataclass(frozen=True)
class ScriptedDecoder:
    """What such a file says about decoding."""

    program: ScriptModule  # latents [1, 16, h, w] -> pictures [1, 3, 8h, 8w], in the dtype it was saved in
    mean: Tensor  # [16] float32, of the latents before they were normalised
    std: Tensor  # likewise


def check_trusted(path: Path, trusted: bool) -> None:
    """Refuse to go on where nobody vouched for the file.

    Raises:
        CheckpointError: `trusted` is false.
    """
    if not trusted:
        raise CheckpointError(
            f"{path} holds TorchScript: a program that would run on this machine with your rights. "
            f"Nothing of it was read; where you trust who made the file, use predict2-export build {TRUST_FLAG}"
        )


def read_scripted_decoder(path: Path, *, trusted: bool) -> ScriptedDecoder:
    """Load the decoder of an image tokenizer, on the CPU; the encoder isn't touched.

    Args:
        path: the file.
        trusted: its owner wants its programs to run.

    Raises:
        CheckpointError: it isn't trusted, is damaged or another file, or asks for more than tensors and
            bytes before any program is reached.
    """
    check_trusted(path, trusted)
    values = _load_values(path)
    program, mean_std = values.get("decoder"), values.get("mean_std")
    if not isinstance(program, bytes) or mean_std is None:
        found = some(f"{key} ({type(value).__name__})" for key, value in values.items())
        raise CheckpointError(
            f'{path} should hold "decoder" as bytes and "mean_std" and holds {found or "nothing"}; '
            "use the tokenizer_fast/tokenizer.pth that the preset names"
        )
    mean, std = _statistics(path, mean_std)
    try:
        with warnings.catch_warnings():
            # torch would like to see TorchScript gone; these files were published as such.
            warnings.simplefilter("ignore", DeprecationWarning)
            loaded: ScriptModule = load(io.BytesIO(program), map_location="cpu")  # type: ignore[no-untyped-call]
            return ScriptedDecoder(loaded.eval(), mean, std)
    except _DAMAGE as error:
        raise damaged(path, error) from error


def _load_values(path: Path) -> dict[str, Any]:
    try:
        unsafe = get_unsafe_globals_in_checkpoint(path)
        values = None if unsafe else torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGE as error:
        raise damaged(path, error) from error
    if unsafe:
        raise CheckpointError(
            f"{path} asks for {some(unsafe)}, more than the bytes and tensors of an image tokenizer; "
            "don't use this file, download it again"
        )
    return values if isinstance(values, dict) else {}


def _statistics(path: Path, mean_std: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel, from a pair of tensors or a tensor of two rows."""
    several = isinstance(mean_std, (list, tuple)) or (
        isinstance(mean_std, Tensor) and mean_std.dim()
    )
    rows = [row for row in mean_std if isinstance(row, Tensor)] if several else []
    if len(rows) != 2 or any(row.numel() != LATENT_CHANNELS for row in rows):
        shapes = " and ".join(str(list(row.shape)) for row in rows) or type(mean_std).__name__
        raise CheckpointError(
            f'"mean_std" of {path} is {shapes}, not two rows of {LATENT_CHANNELS} numbers; '
            "it is another tokenizer's file"
        )
    mean, std = (row.flatten().float() for row in rows)
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise CheckpointError(
            f'"mean_std" of {path} holds numbers that are no means and deviations; download it again'
        )
    return mean, std
