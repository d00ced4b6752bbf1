# SPDX-License-Identifier: Apache-2.0
"""Progress of requests on stderr: a bar each on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

from predict2_spec.results import Event

from .exchange import OnEvent
from .terminal import note, printable

if TYPE_CHECKING:
    from rich.progress import Progress

# Shows one request among several, under a label; None when nothing is to be shown.
Shown = Callable[[str], contextlib.AbstractContextManager[OnEvent | None]]

_LINE_EVERY_S = 15.0


@contextlib.contextmanager
def shown(label: str, quiet: bool) -> Iterator[OnEvent | None]:
    """Yield what to call for each event of one request; None when nothing is to be shown."""
    with board(quiet) as show, show(label) as on_event:
        yield on_event


@contextlib.contextmanager
def board(quiet: bool) -> Iterator[Shown]:
    """Yield what shows a request; several, of several threads, may be shown at the same time."""
    if quiet:
        yield lambda label: contextlib.nullcontext()
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield partial(_bar, bars)
    else:
        yield lambda label: contextlib.nullcontext(_Lines(label))


def _bars() -> "Progress":
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class Left(progress.TimeRemainingColumn):
        """What the server says is left; else what the pace of this stage's steps says."""

        def render(self, task: progress.Task) -> Text:
            ends = task.fields["ends"]
            if ends is None:
                return super().render(task)
            left = timedelta(seconds=max(0, round(ends - time.monotonic())))
            return Text(str(left), style="progress.remaining")

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        Left(),
    )
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def _bar(bars: "Progress", label: str) -> Iterator[OnEvent]:
    task = bars.add_task(printable(f"{label}: waiting"), total=None, ends=None)
    stage = ""

    def on_event(event: Event) -> None:
        nonlocal stage
        if event.stage != stage:  # the time left is estimated from the steps of this stage alone
            stage = event.stage
            bars.reset(task, description=printable(f"{label}: {stage}"), total=event.of)
        ends = None if event.eta_s is None else time.monotonic() + event.eta_s
        bars.update(task, completed=event.step, ends=ends)

    try:
        yield on_event
    finally:
        bars.refresh()  # the last step may be younger than what is on the screen
        bars.remove_task(task)


class _Lines:
    """A line when a stage ends, and every so often within one."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._last_s = 0.0

    def __call__(self, event: Event) -> None:
        if event.step < event.of and event.seconds - self._last_s < _LINE_EVERY_S:
            return
        self._last_s = event.seconds
        note(f"{self._label}: {in_words(event)}")


def in_words(event: Event) -> str:
    """How far a request is."""
    left = f", some {event.eta_s:.0f} s left" if event.eta_s else ""
    return f"{event.stage} {event.step}/{event.of}, {event.seconds:.1f} s{left}"
