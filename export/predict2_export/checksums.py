# SPDX-License-Identifier: Apache-2.0
"""Digests of files too large to read at once, and the list of those already checked."""

import hashlib
from collections.abc import Collection
from pathlib import Path

# In the format of sha256sum, so that `sha256sum -c SHA256SUMS` checks a checkpoint folder too.
RECORD = "SHA256SUMS"
GIT_SHA1 = "git-sha1"  # what git, and so the hub, calls a file that isn't in its large-file storage
_BLOCK_BYTES = 2**24


def digests(path: Path, kinds: Collection[str]) -> dict[str, str]:
    """Hex digests of a file, read once; a terminal is shown how far it is.

    Args:
        path: any file.
        kinds: names that hashlib knows, or GIT_SHA1.
    """
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]  # slow to import

    size = path.stat().st_size
    hashes = {kind: _start(kind, size) for kind in kinds}
    with (
        path.open("rb") as stream,
        # disable=None: only on a terminal.
        tqdm(  # type: ignore[no-untyped-call]
            total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, disable=None
        ) as bar,
    ):
        while block := stream.read(_BLOCK_BYTES):
            for hash_ in hashes.values():
                hash_.update(block)
            bar.update(len(block))
    return {kind: hash_.hexdigest() for kind, hash_ in hashes.items()}


def _start(kind: str, size: int) -> "hashlib._Hash":
    if kind == GIT_SHA1:
        return hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    return hashlib.new(kind, usedforsecurity=kind != "md5")


def read_record(root: Path) -> dict[str, str]:
    """SHA-256 of every file that was checked, by its path below `root`; a later line wins."""
    file = root / RECORD
    if not file.exists():
        return {}
    lines = (line.split("  ", 1) for line in file.read_text().splitlines())
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}


def record(root: Path, path: str, sha256: str) -> None:
    """Note that the file at `path` below `root` was checked and has this digest."""
    lines = {**read_record(root), path: sha256}
    part = root / f".{RECORD}.part"
    part.write_text("".join(f"{value}  {name}\n" for name, value in sorted(lines.items())))
    part.replace(root / RECORD)
