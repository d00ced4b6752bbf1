# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files and folders -> their tensors, unread, under the names that are stored.

Formats: safetensors, torch.save files, and folders of either, sharded or not.
"""

import json
import pickle
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from predict2_spec.errors import CheckpointError

from .stored import StoredTensor

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


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint, in its stored dtype and under its stored name.

    Only plain tensors are read: nothing in a file can run code.

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
    state: dict[str, StoredTensor] = {}
    for file in files:
        state |= {key: _held(tensor) for key, tensor in _read_file(file).items()}
    return state


def _held(tensor: Tensor) -> StoredTensor:
    return StoredTensor(tuple(tensor.shape), tensor.dtype, partial(_same, tensor))


def _same(tensor: Tensor) -> Tensor:
    return tensor


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
