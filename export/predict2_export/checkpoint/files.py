# SPDX-License-Identifier: Apache-2.0
"""Checkpoint files and folders -> their tensors, unread, under the names that are stored.

Formats: safetensors, torch.save files, and folders of either, sharded or not.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predict2_spec.errors import CheckpointError

from .safetensors_file import read_safetensors
from .stored import StoredTensor
from .torch_file import ZIP_MAGIC, read_torch
from .wording import short, some

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)

# What downloads leave in place of a checkpoint, by how it begins.
_STAND_INS = (
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file; run `git lfs pull`"),
    (rb"\s*<(!doctype|html|\?xml)", "a web page, perhaps one that asks to sign in or to accept a licence"),
    (rb"\s*\{\s*\"(error|message)\"", "a server's error message"),
)  # fmt: skip


@dataclass(frozen=True)
class Shards:
    """The files of one checkpoint, and what its index says is in them."""

    files: tuple[Path, ...]
    index: Path | None = None
    file_of: Mapping[str, str] | None = None  # file's name by tensor's
    num_bytes: int | None = None  # of all tensors


def read_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint, in its stored dtype and under its stored name.

    Nothing is loaded and no file stays open. Nothing in a file can run code.

    Args:
        path: a .safetensors, .pt, .pth or .bin file, or a folder that holds one checkpoint as one
            such file or as shards with their index.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, holds no tensors, or
            needs more than plain tensors to be read; or shards and index are of two checkpoints.
    """
    shards = find_files(path)
    state: dict[str, StoredTensor] = {}
    for file in shards.files:
        tensors = _read_file(file)
        if both := [key for key in tensors if key in state]:
            raise CheckpointError(
                f"{file} holds {len(both)} tensors of other shards again ({some(both)}); "
                "download all shards of one checkpoint"
            )
        state |= tensors
        _check_shard(shards, file, tensors)
    total = sum(tensor.nbytes for tensor in state.values())
    # Torch's shards may hold a tensor under two names, which an index counts once.
    if shards.num_bytes not in (None, total) and shards.files[0].suffix == ".safetensors":
        raise CheckpointError(
            f"the shards that {shards.index} lists hold {total} bytes of tensors, not {shards.num_bytes}; "
            "some are of another checkpoint: download all of one"
        )
    return state


def find_files(path: Path) -> Shards:
    """The files that a checkpoint's path stands for.

    Raises:
        CheckpointError: there is none, or more than one checkpoint.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} doesn't exist; download the checkpoint there or correct the path"
        )
    if not path.is_dir():
        return Shards((path,))
    for suffix in SUFFIXES:
        indexes = sorted(path.glob(f"*{suffix}.index.json"))
        files = indexes or sorted(path.glob(f"*{suffix}"))
        if len(files) > 1:
            raise CheckpointError(
                f"{path} holds several checkpoints ({some(f.name for f in files)}); name one of them"
            )
        if files:
            return _listed(indexes[0]) if indexes else Shards(tuple(files))
    raise CheckpointError(
        f"{path} holds no checkpoint ({', '.join(SUFFIXES)}); download it there or correct the path"
    )


def _listed(index: Path) -> Shards:
    try:
        values: Any = json.loads(index.read_text())
        # A shard lies beside its index; an index from elsewhere must not point to other files.
        file_of = {str(key): Path(name).name for key, name in values["weight_map"].items()}
        num_bytes = values.get("metadata", {}).get("total_size")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{index} is no readable index of shards ({short(error)}); download it again"
        ) from error
    files = tuple(index.parent / name for name in sorted(set(file_of.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent} lacks {len(missing)} of {len(files)} shards ({some(missing)}); download them"
        )
    return Shards(files, index, file_of, num_bytes if isinstance(num_bytes, int) else None)


def _check_shard(shards: Shards, file: Path, tensors: Mapping[str, StoredTensor]) -> None:
    if shards.file_of is None:
        return
    listed = {key for key, name in shards.file_of.items() if name == file.name}
    if other := sorted(listed ^ tensors.keys()):
        raise CheckpointError(
            f"{file} is of another checkpoint than {shards.index}: "
            f"only one of them names {len(other)} tensors ({some(other)}); download all of one"
        )


def _read_file(path: Path) -> dict[str, StoredTensor]:
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path} has the suffix {path.suffix!r}; checkpoints end in {', '.join(SUFFIXES)}"
        )
    _refuse_stand_ins(path)
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)


def container(file: Path) -> str:
    """The format of a file that can be read, in words."""
    if file.suffix == ".safetensors":
        return "safetensors"
    with file.open("rb") as stream:
        zipped = stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    return "torch.save, zip archive" if zipped else "torch.save, as before torch 1.6"


def _refuse_stand_ins(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise CheckpointError(
            f"{path} can't be opened ({error.strerror}); check that this user may read it"
        ) from error
    if not start:
        raise CheckpointError(f"{path} is empty; download it again")
    for pattern, what in _STAND_INS:
        if re.match(pattern, start, re.IGNORECASE):
            raise CheckpointError(f"{path} is {what}; download it again")
