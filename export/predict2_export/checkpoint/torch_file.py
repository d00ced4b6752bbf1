# SPDX-License-Identifier: Apache-2.0
"""Files of torch.save, zip archives and the format before them: where every tensor's numbers lie."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

from predict2_spec.errors import CheckpointError

from .outline import (
    MAX_BYTES,
    LimitedFile,
    OversizeError,
    Storage,
    UnsafeError,
    View,
    outline,
)
from .stored import Place, StoredTensor, stored_at
from .wording import damaged, some

LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # a pickled number
ZIP_MAGIC = b"PK\x03\x04"
_ZIP_HEADER = struct.Struct("<4s22xHH")  # of an entry: magic, lengths of its name and of extras
_COUNT = struct.Struct("<q")
# What zipfile and pickle raise on damaged bytes, found by flipping bytes at random.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    UnpicklingError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)

Found = tuple[Any, dict[str, tuple[int, int]]]  # what was saved; offset and checksum by storage


def read_torch(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors at the top level of what was saved; other values there are no weights.

    A dict named `model` there takes its place: training scripts save weights so, beside other things.

    Raises:
        CheckpointError: the file is damaged, none of torch.save's, holds no tensors at its top
            level, or more than plain tensors and values.
    """
    try:
        with path.open("rb") as file:
            values, places = (
                _read_zip(path, file) if is_zip(path, file) else _read_legacy(path, file)
            )
    except UnsafeError as error:
        raise CheckpointError(
            f"{path} asks for more than plain tensors ({error!s:.80}), which could run code while it is "
            "read; save its tensors alone, as safetensors, where you trust the file"
        ) from error
    except OversizeError as error:
        raise CheckpointError(
            f"{path} has {error} beside its tensors, where {MAX_BYTES} would do: it's damaged, or holds "
            "programs or pictures too; download it again, or save its tensors alone"
        ) from error
    except _DAMAGE as error:
        raise damaged(path, error) from error
    if isinstance(values, dict) and isinstance(values.get("model"), dict):
        values = values["model"]
    items = values.items() if isinstance(values, dict) else ()
    tensors = {
        str(key): stored_at(_place(path, view, places))
        for key, view in items
        if isinstance(view, View)
    }
    if not tensors:
        found = some(values) if isinstance(values, dict) else type(values).__name__
        raise CheckpointError(
            f"{path} holds no tensors at its top level, only {found or 'nothing'}; "
            "save the state dict by itself"
        )
    return tensors


def is_zip(path: Path, file: BinaryIO) -> bool:
    """Whether torch wrote the file as a zip archive.

    Raises:
        CheckpointError: torch never wrote it, or it's cut short.
    """
    start = file.read(len(LEGACY_MAGIC))
    zipped = start.startswith(ZIP_MAGIC)
    whole = zipped and zipfile.is_zipfile(file)
    file.seek(0)
    if zipped and not whole:
        raise CheckpointError(f"{path} is cut short; download it again")
    if not zipped and start != LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} is no file of torch.save: it begins with {start[:8]!r}; download it again"
        )
    return zipped


def _place(path: Path, view: View, places: dict[str, tuple[int, int]]) -> Place:
    start, crc32 = places[view.storage.key]
    itemsize = view.dtype.itemsize
    nbytes = view.span * itemsize
    return Place(
        path,
        start + view.offset * itemsize,
        nbytes,
        view.shape,
        view.strides,
        view.dtype,
        crc32 if nbytes == view.storage.nbytes else 0,  # it's the whole storage's
    )


def _read_zip(path: Path, file: BinaryIO) -> Found:
    with zipfile.ZipFile(LimitedFile(file)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickled = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise CheckpointError(
            f"{path} is a zip archive, but none of torch.save; unpack it and name a file in it"
        )
    folder = pickled[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise CheckpointError(
            f"{path} is a TorchScript program; its tensors alone are needed, as torch.save or safetensors write them"
        )
    order = entries.get(f"{folder}byteorder")
    if order and _content(path, file, order) != b"little":
        raise CheckpointError(f"{path} was saved on a big-endian machine; save it again on another")
    values, storages = outline(io.BytesIO(_content(path, file, entries[pickled[0]])))
    places = {}
    for key, storage in storages.items():
        entry = entries[f"{folder}data/{key}"]
        if entry.file_size != storage.nbytes:
            raise ValueError(f"storage {key} has {entry.file_size} bytes, not {storage.nbytes}")
        places[key] = _start(path, file, entry), entry.CRC
    return values, places


def _content(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> bytes:
    file.seek(_start(path, file, entry))
    content = LimitedFile(file).read(entry.file_size)
    if entry.CRC and zlib.crc32(content) != entry.CRC:  # torch.save can leave checksums out
        raise ValueError(f"checksum of {entry.filename}")
    return content


def _start(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Offset of an entry's first byte; zipfile knows only that of the header before it."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(
            f"{path} was compressed or encrypted after torch.save; unpack it and save its tensors again"
        )
    file.seek(entry.header_offset)
    magic, name_size, extra_size = _ZIP_HEADER.unpack(file.read(_ZIP_HEADER.size))
    name = file.read(name_size)
    start: int = entry.header_offset + _ZIP_HEADER.size + name_size + extra_size
    if magic != ZIP_MAGIC or name != entry.orig_filename.encode():
        raise ValueError(f"entry {entry.filename!r:.40} is elsewhere")
    if start + entry.file_size > file.seek(0, io.SEEK_END):
        raise ValueError(f"entry {entry.filename!r:.40} ends outside the file")
    return start


def _read_legacy(path: Path, file: BinaryIO) -> Found:
    """Four pickles (magic, version, machine, values), a list of storages, then these: count, bytes."""
    limited = LimitedFile(file)
    (_, _), (version, _), (machine, _) = (outline(limited) for _ in range(3))
    if version != 1001 or machine["little_endian"] is not True:
        raise CheckpointError(
            f"{path} was saved by an unknown torch or a big-endian machine; save it again on another"
        )
    values, storages = outline(limited)
    keys, _ = outline(limited)
    if sorted(keys) != sorted(storages):
        raise ValueError("its list of storages is another file's")
    return values, _legacy_places(path, file, [storages[key] for key in keys])


def _legacy_places(
    path: Path, file: BinaryIO, storages: list[Storage]
) -> dict[str, tuple[int, int]]:
    places, start = {}, file.tell()
    size = file.seek(0, io.SEEK_END)
    needed = start + sum(_COUNT.size + storage.nbytes for storage in storages)
    if needed > size:
        raise CheckpointError(
            f"{path} is cut short: {size} of {needed} bytes are there; download it again"
        )
    for storage in storages:
        file.seek(start)
        (count,) = _COUNT.unpack(file.read(_COUNT.size))
        if count * storage.itemsize != storage.nbytes:
            raise ValueError(f"storage {storage.key} has {count} elements")
        places[storage.key] = start + _COUNT.size, 0
        start += _COUNT.size + storage.nbytes
    return places
