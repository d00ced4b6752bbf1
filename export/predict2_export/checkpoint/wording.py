# SPDX-License-Identifier: Apache-2.0
"""Words that messages about checkpoints share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from predict2_spec.errors import CheckpointError

NUM_LISTED = 3  # names of one kind that a message spells out


def some(names: Iterable[Any]) -> str:
    """The first few names, and dots for the others."""
    listed = [str(name) for name in names]
    more = ", ..." if len(listed) > NUM_LISTED else ""
    return ", ".join(f"{name:.120}" for name in listed[:NUM_LISTED]) + more


def short(error: Exception) -> str:
    """An error in one short line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]:.100}"


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What to raise for an error that only damage explains."""
    return CheckpointError(f"{path} can't be read ({short(error)}); download it again")


def amount(size_bytes: int) -> str:
    """A size with a unit of a power of 1000, such as 3.91 GB."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes} B"
