# SPDX-License-Identifier: Apache-2.0
"""A pickle of torch.save as an outline: names, shapes and storages, no numbers and no code.

Unpickling is calling functions that the file names. Here a name outside a short table is refused,
and a name in it stands for a function below that only notes what it was called with: nothing is
imported, nothing of torch's is built, and memory stays within a small multiple of what is read.
"""

import math
import pickle
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

MAX_BYTES = 2**23  # of pickles in a file; the largest network's takes 2**18


class UnsafeError(Exception):
    """A pickle names what isn't in the table; what it would have done is unknown."""


class OversizeError(Exception):
    """There is more beside the tensors than names and shapes take."""


@dataclass(frozen=True)
class Storage:
    """A run of bytes that tensors are views of."""

    key: str
    itemsize: int  # of the elements that the file counts it in
    nbytes: int
    dtype: torch.dtype


@dataclass(frozen=True)
class View:
    """A tensor: part of a storage. Offset and strides are in elements of its dtype."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to the last, both included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))


class Other:
    """A value beside the tensors, such as a step count's type; what it held is dropped."""

    def __init__(self, *_: object) -> None:
        pass


class LimitedFile:
    """The reading half of a file, with an end to how much may be read in all."""

    def __init__(self, file: BinaryIO, limit: int = MAX_BYTES) -> None:
        self.file, self.left = file, limit

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        if size > self.left:
            raise OversizeError(f"{size} bytes in one piece")
        data = self.file.read(size if size >= 0 else self.left)
        self.left -= len(data)
        return data

    def readline(self) -> bytes:
        """Up to the next line break."""
        data = self.file.readline(self.left)
        self.left -= len(data)
        return data

    def __getattr__(self, name: str) -> Any:  # seek, tell and the like
        return getattr(self.file, name)


def outline(file: BinaryIO | LimitedFile) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle: its value, tensors being `View`s, and every storage it names by key.

    Leaves the file right behind the pickle.

    Raises:
        UnsafeError: it names something that isn't plain tensors and plain values.
        Exception: nearly any, when the bytes are damaged.
    """
    reader = _Outliner(file)  # type: ignore[arg-type]
    return reader.load(), reader.storages


class _Outliner(pickle._Unpickler):
    # The C unpickler allocates what a damaged length says before it looks whether so much is there.

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _CALLABLES:
            return _CALLABLES[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise UnsafeError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise ValueError(f"storage {pid!r:.80}")
        if not isinstance(key, str) or not _is_size(count):
            raise ValueError(f"storage {pid!r:.80}")
        storage = Storage(key, dtype.itemsize, count * dtype.itemsize, dtype)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"two kinds of storage {key!r:.40}")
        return storage

    def load_build(self) -> None:
        self.stack.pop()  # type: ignore[attr-defined]  # attributes; a state dict has versions there

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # type: ignore[dict-item]  # noqa: RUF012
    del dispatch[pickle.BYTEARRAY8[0]]  # allocates before it reads; torch.save doesn't write it


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _view(
    storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object
) -> View:
    return _checked(View(storage, storage.dtype, offset, shape, strides))


def _typed_view(
    storage: Storage,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    grad: object,
    hooks: object,
    dtype: torch.dtype,
    *_: object,
) -> View:
    return _checked(View(storage, dtype, offset, shape, strides))


def _checked(view: View) -> View:
    """Refuse what reaches outside its storage, or would grow: a few bytes repeated a billion times."""
    sizes = (view.offset, *view.shape, *view.strides)
    if not all(_is_size(size) for size in sizes) or len(view.shape) != len(view.strides):
        raise ValueError(f"a tensor of shape {view.shape!r:.60}")
    elements = view.storage.nbytes // view.dtype.itemsize
    if view.offset + view.span > elements or math.prod(view.shape) > elements:
        raise ValueError(
            f"a tensor of shape {view.shape!r:.60} in a storage of {elements} elements"
        )
    return view


def _parameter(data: View, *_: object) -> View:
    return data


def _with_attributes(function: Any, kind: object, args: tuple[Any, ...], *_: object) -> View:
    if function not in (_view, _typed_view, _parameter):
        raise UnsafeError(f"{function!r:.60}")
    view: View = function(*args)
    return view


_CALLABLES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): dict,
    ("torch._utils", "_rebuild_tensor"): _view,
    ("torch._utils", "_rebuild_tensor_v2"): _view,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_view,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _with_attributes,
    ("torch", "Tensor"): Other,
    ("torch", "Size"): Other,
    ("torch", "device"): Other,
    ("torch.nn.parameter", "Parameter"): Other,
    # Transformer Engine's layers keep their scales so, pickled once more, in `_extra_state`.
    ("_io", "BytesIO"): Other,
    ("_codecs", "encode"): Other,
}
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
