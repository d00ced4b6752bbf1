# SPDX-License-Identifier: Apache-2.0
"""Bring published files into a checkpoint folder: what is missing, resumed, checked, and whole or not at all."""

import fcntl
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from predict2_spec.errors import CheckpointError, in_words

from .checkpoint.wording import amount
from .checksums import GIT_SHA1, digests, read_record, record
from .wanted import RemoteFile

Report = Callable[[str], None]  # is told one line of progress
# Appends to a stream what it doesn't hold yet of a file.
Download = Callable[[RemoteFile, BinaryIO], None]


class RefusedError(CheckpointError):
    """A hub refuses a whole repository; asking for its other files would be in vain."""


class State(Enum):
    """What has to be done for a file; the value is what people read."""

    FETCH = "to fetch"
    RESUME = "to go on with"
    REPLACE = "another file is there, to fetch"
    CHECK = "there, to check"
    DONE = "there"


@dataclass(frozen=True)
class Item:
    """A file and what has to be done for it."""

    file: RemoteFile
    state: State
    have_bytes: int = 0  # of them, how many are on the disk

    @property
    def missing_bytes(self) -> int:
        """How many the hub still has to send."""
        return self.file.size_bytes - self.have_bytes


def plan(files: Iterable[RemoteFile], root: Path, *, verify: bool = False) -> list[Item]:
    """What has to be done for each file, by what lies below `root`; with `verify` all there is gets checked."""
    recorded = read_record(root)
    return [_item(file, root, recorded, verify) for file in files]


def _item(file: RemoteFile, root: Path, recorded: Mapping[str, str], verify: bool) -> Item:
    target, part = root / file.path, part_path(root, file)
    if target.is_file() and target.stat().st_size == file.size_bytes:
        if verify or file.path not in recorded:
            return Item(file, State.CHECK, file.size_bytes)
        if _is_current(file, target, recorded[file.path]):
            return Item(file, State.DONE, file.size_bytes)
    if part.exists():
        have = min(part.stat().st_size, file.size_bytes)
        return Item(file, State.RESUME, have)
    return Item(file, State.REPLACE if target.exists() else State.FETCH)


def _is_current(file: RemoteFile, target: Path, recorded: str) -> bool:
    """Whether a file that was checked once is still the one at the pinned revision."""
    if file.sha256:
        return recorded == file.sha256
    # The hub says git's digest of small files only, which hash in no time.
    return digests(target, {GIT_SHA1})[GIT_SHA1] == file.git_sha1


def part_path(root: Path, file: RemoteFile) -> Path:
    """Where the file is while it is incomplete: beside its place, so that moving it there is one step."""
    target = root / file.path
    content = (file.sha256 or file.git_sha1)[:12]
    return target.with_name(f".{target.name}.{content}.part")


def check_space(items: Iterable[Item], root: Path) -> None:
    """Refuse what doesn't fit on the disk, or on the disks where folders are links to others.

    Raises:
        CheckpointError: some disk has less room than the files need.
    """
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for item in items:
        if item.missing_bytes:
            folder = existing_parent((root / item.file.path).parent)
            device = folder.stat().st_dev
            needed[device] = needed.get(device, 0) + item.missing_bytes
            folders[device] = folder
    for device, size in needed.items():
        free = shutil.disk_usage(folders[device]).free
        if free < size:
            raise CheckpointError(
                f"{folders[device]} has {amount(free)} free, the files need {amount(size)}; make room, "
                "name a folder on another disk with --checkpoints, or take less with --tasks or --layout diffusers"
            )


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def fetch(
    items: Sequence[Item],
    root: Path,
    download: Download,
    report: Report,
    *,
    checksums: bool = True,
) -> list[str]:
    """Bring in what is missing and check it; a file has its own name only when it is whole and checked.

    Args:
        items: what to do.
        root: the checkpoint folder.
        download: appends what is missing of a file to what a stream holds already.
        report: is told what is going on.
        checksums: refuse what isn't the file that this package knows; the hub's own digests are checked anyway.

    Returns:
        A line for each failure. One doesn't stop the files after it.
    """
    todo = [item for item in items if item.state is not State.DONE]
    failures: list[str] = []
    refused: set[str] = set()
    for number, item in enumerate(todo, start=1):
        if item.file.repo.name in refused:
            continue
        report(f"[{number}/{len(todo)}] {item.file.path} ({amount(item.file.size_bytes)})")
        try:
            if item.state is State.CHECK:
                _check_present(item.file, root, checksums)
            else:
                _fetch_file(item.file, root, download, checksums)
        except RefusedError as error:
            refused.add(item.file.repo.name)
            failures.append(str(error))
        except CheckpointError as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{item.file.path}: {in_words(error)}")
    return failures


def _fetch_file(file: RemoteFile, root: Path, download: Download, checksums: bool) -> None:
    part, target = part_path(root, file), root / file.path
    part.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part) as stream:
        if stream.tell() > file.size_bytes:
            stream.seek(0)
            stream.truncate()
        download(file, stream)
        stream.flush()
        os.fsync(stream.fileno())
        sha256 = _checked(file, part, checksums, lambda: _remove(part))
        if target.exists() and file.path not in read_record(root):
            _set_aside(target)  # somebody else's, such as weights tuned further
        part.replace(target)
        record(root, file.path, sha256)


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    """The incomplete file, open at its end; two fetches writing to it at once would spoil it."""
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{part} is being written by another fetch; wait until that has ended"
            ) from None
        try:
            yield stream
        finally:
            if not stream.tell():
                part.unlink(missing_ok=True)  # a refused file leaves nothing


def _check_present(file: RemoteFile, root: Path, checksums: bool) -> None:
    target = root / file.path
    record(root, file.path, _checked(file, target, checksums, lambda: _set_aside(target)))


def _checked(file: RemoteFile, path: Path, checksums: bool, dispose: Callable[[], str]) -> str:
    """The SHA-256 of a complete file at `path`.

    Raises:
        CheckpointError: it isn't what the hub has, then `dispose` gets it out of the way and says how. Or it isn't
            what this package knows, then it stays, so that accepting it costs no second download.
    """
    found = digests(path, {"sha256", *file.hub_digests, *file.known_digests})
    if wrong := _differing(file.hub_digests, found):
        raise CheckpointError(
            f"{file.path} is damaged: {wrong}; {dispose()}, run the command again to fetch it"
        )
    if checksums and (wrong := _differing(file.known_digests, found)):
        raise CheckpointError(
            f"{file.path} is what the hub has but not the file this version knows: {wrong}; it is kept as {path.name}. "
            "If you trust that hub, run the command again with --no-checksums"
        )
    return found["sha256"]


def _remove(part: Path) -> str:
    part.unlink()
    return "it is removed"


def _set_aside(path: Path) -> str:
    aside = _free_name(path)
    path.rename(aside)
    return f"it is now {aside.name}"


def _differing(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    return " and ".join(
        f"{kind} {found[kind]} instead of {value}"
        for kind, value in expected.items()
        if found[kind] != value
    )


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.aside{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())
