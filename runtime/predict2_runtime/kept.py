# SPDX-License-Identifier: Apache-2.0
"""What requests that ended left behind, a file each: removed by age, and the oldest first where it is too much.

A file is a line of JSON and after it the outputs, one behind the other. It is written whole or not at all, by renaming,
so any number of processes may write and read. There is no thread: whoever writes or asks also removes.
"""

import fcntl
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from predict2_spec.results import Failure

log = logging.getLogger(__name__)

Outputs = dict[str, Any]  # name -> uint8 array, or text
MAX_FILES = 4000  # of them or of any other folder; to go through more would take too long
PART = ".part-"  # how the name begins of a file that isn't whole yet


@dataclass(frozen=True)
class Kept:
    """How one request ended."""

    digest: str  # of what it asked for
    done: bool
    failure: Failure | None = None  # why it failed; where it is done, why its result isn't here
    outputs: Outputs = field(default_factory=dict)
    whole: bool = False  # `outputs` are all that the caller was sent
    rest_s: float = 0.0  # how long it will be here yet


@dataclass(frozen=True)
class Shelf:
    """A folder of them."""

    folder: Path
    max_bytes: int
    max_seconds: float

    def put(self, name: str, kept: Kept) -> None:
        """Write it in place of what was there, and remove others to make room.

        Raises:
            OSError: the disk takes no more; nothing of it stays.
        """
        arrays = {key: _encode(value) for key, value in kept.outputs.items()}
        sizes = [[key, a.nbytes, isinstance(kept.outputs[key], str)] for key, a in arrays.items()]
        head = {
            "digest": kept.digest,
            "done": kept.done,
            "failure": asdict(kept.failure) if kept.failure else None,
            "whole": kept.whole,
            "sizes": sizes,
        }
        line = json.dumps(head).encode() + b"\n"
        self.make_room(len(line) + sum(a.nbytes for a in arrays.values()))
        part = self.folder / f"{PART}{uuid4().hex}"
        try:
            with part.open("xb") as file:
                file.write(line)
                for array in arrays.values():
                    file.write(array)
            with _locked(self.folder):
                part.rename(self.folder / name)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def find(self, name: str, *, with_outputs: bool) -> Kept | None:
        """What is there under a name; None: nothing, or nothing any more."""
        try:
            with (self.folder / name).open("rb") as file:
                status = os.fstat(file.fileno())
                rest_s = status.st_mtime + self.max_seconds - time.time()
                if rest_s <= 0:
                    return None
                head = json.loads(file.readline())
                sizes = head.pop("sizes")
                if file.tell() + sum(size for _, size, _ in sizes) != status.st_size:
                    raise ValueError("it is cut short")
                wanted = sizes if with_outputs else ()
                outputs = {key: _decode(file.read(size), text) for key, size, text in wanted}
            failure = head.pop("failure")
            failure = Failure(**failure) if failure else None
            return Kept(**head, failure=failure, outputs=outputs, rest_s=rest_s)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("the kept result %s can't be read (%s); it counts as none", name, error)
            return None

    def remove(self, name: str) -> None:
        """Remove what is there under a name, if anything is."""
        (self.folder / name).unlink(missing_ok=True)

    def make_room(self, size: int = 0) -> None:
        """Remove what is too old, and then the oldest until `size` more bytes fit."""
        with _locked(self.folder):
            remove_old(self.folder, self.max_seconds, self.max_bytes - size)

    def size(self) -> int:
        """Bytes of all that is kept."""
        return sum(size for _, size, _ in _files(self.folder))

    def remove_parts(self) -> None:
        """Remove what a process that was killed had begun to write; none may be writing now."""
        for part in self.folder.glob(f"{PART}*"):
            part.unlink(missing_ok=True)


def remove_old(folder: Path, max_seconds: float, max_bytes: float = float("inf")) -> None:
    """Remove files too old, and then the oldest until what stays is within `max_bytes` and MAX_FILES."""
    found = sorted(_files(folder))
    total, count, too_old = sum(size for _, size, _ in found), len(found), time.time() - max_seconds
    for changed, size, path in found:
        if changed > too_old and total <= max_bytes and count < MAX_FILES:
            break
        path.unlink(missing_ok=True)
        total, count = total - size, count - 1


def _files(folder: Path) -> Iterator[tuple[float, int, Path]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process removed it just now
                status = entry.stat(follow_symlinks=False)
                if not entry.name.startswith(PART):
                    yield status.st_mtime, status.st_size, Path(entry.path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody puts a file under a name while another, who has looked at what was there before, removes it."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # of file systems that know no such locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def size_of(outputs: Outputs) -> int:
    """Bytes of all outputs."""
    return sum(_encode(value).nbytes for value in outputs.values())


def _encode(value: Any) -> Any:
    data = value.encode() if isinstance(value, str) else value
    return np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data)


def _decode(data: bytes, text: bool) -> Any:
    return data.decode() if text else np.frombuffer(data, np.uint8)
