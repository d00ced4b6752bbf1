# SPDX-License-Identifier: Apache-2.0
"""Which stages are at work and since when, told through files, so that one that hangs is found.

A call of a stage that never returns holds its process, and whatever waits for it, for ever: neither Triton nor the
pipeline that called can end it. predict2-serve can end them all, and whoever runs it starts it again.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    with suppress(OSError):  # a full disk costs no request
        mark.touch()
        now = time.monotonic_ns()  # the same clock in all processes, and nobody can set it
        os.utime(mark, ns=(now, now))
    try:
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def find_stalled(folder: Path, longest_s: float) -> str:
    """A stage that has worked on one call for longer than that, by its name; empty if there is none."""
    for mark in folder.glob(f"{_MARK}*"):
        try:
            began = mark.stat().st_mtime
        except OSError:  # it ended just now
            continue
        if time.monotonic() - began > longest_s:
            return mark.name.removeprefix(_MARK).rpartition("-")[0]
    return ""
