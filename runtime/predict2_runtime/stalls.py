# SPDX-License-Identifier: Apache-2.0
"""Which stages are at work and since when, told through files, so that one that hangs is found.

A call of a stage that never returns holds its process, and whatever waits for it, for ever: neither Triton nor the
pipeline that called can end it. predict2-serve can end them all, and whoever runs it starts it again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

_MARK = "working-"  # then the stage's name and a number


@contextmanager
def at_work(folder: Path | None, stage: str) -> Iterator[None]:
    """Mark a stage as working while the block runs; without a folder nobody looks."""
    if folder is None:
        yield
        return
    mark = folder / f"{_MARK}{stage}-{uuid4().hex}"
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def find_stalled(folder: Path, longest_s: float) -> str:
    """A stage that has worked on one call for longer than that, by its name; empty if there is none."""
    for mark in folder.glob(f"{_MARK}*"):
        try:
            began = mark.stat().st_mtime
        except FileNotFoundError:  # it ended just now
            continue
        if time.time() - began > longest_s:
            return mark.name.removeprefix(_MARK).rpartition("-")[0]
    return ""
