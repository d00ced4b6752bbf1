# SPDX-License-Identifier: Apache-2.0
"""Progress of one request on stderr: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
from collections.abc import Iterator

from predict2_spec.results import Event

from .client import OnEvent

_LINE_EVERY_S = 15.0


@contextlib.contextmanager
def shown(label: str, quiet: bool) -> Iterator[OnEvent | None]:
    """Yield what to call for each event; None when nothing is to be shown."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _bar(label) as on_event:
            yield on_event
    else:
        yield _Lines(label)


@contextlib.contextmanager
def _bar(label: str) -> Iterator[OnEvent]:
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(f"{label}: waiting", total=None)
        stage = ""

        def on_event(event: Event) -> None:
            nonlocal stage
            if (
                event.stage != stage
            ):  # the time left is estimated from the steps of this stage alone
                stage = event.stage
                bars.reset(task, description=f"{label}: {stage}", total=event.of)
            bars.update(task, completed=event.step)

        yield on_event


class _Lines:
    """A line when a stage ends, and every so often within one."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last_s = 0.0

    def __call__(self, event: Event) -> None:
        if event.step < event.of and event.seconds - self._last_s < _LINE_EVERY_S:
            return
        self._last_s = event.seconds
        # Nobody reading stderr any more is no reason to give up the result.
        with contextlib.suppress(OSError):
            sys.stderr.write(
                f"{self._label}: {event.stage} {event.step}/{event.of}, {event.seconds:.1f} s\n"
            )
            sys.stderr.flush()
