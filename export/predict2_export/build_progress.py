# SPDX-License-Identifier: Apache-2.0
"""How far TensorRT is with a plan: a bar on a terminal, elsewhere a line now and then."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Report = Callable[[str], None]  # is told one line of progress
_TOLD_EVERY = 30.0  # seconds between two lines
_SHOWN = 3  # phases inside each other that have a bar; those further inside come and go too fast


@dataclass(frozen=True)
class Phase:
    """Something a builder is busy with."""

    name: str
    num_steps: int
    done: int = 0  # of its steps


Show = Callable[[Sequence[Phase]], None]  # gets the phases that are open, the outermost first


class Phases:
    """What a builder is busy with, told by its threads, and whether it shall go on.

    Its methods raise nothing: TensorRT's bindings would print what they raise and lose it.
    """

    def __init__(self, show: Show) -> None:
        self.failure: BaseException | None = (
            None  # what `show` raised first; the build is stopped then
        )
        self._show = show
        self._open: dict[str, Phase] = {}
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Stop at the next step."""
        self._cancelled.set()

    def start(self, name: str, num_steps: int) -> None:
        """A phase begins, inside all that are open."""
        with self._lock:
            self._open[name] = Phase(name, num_steps)
            self._tell()

    def step(self, name: str, index: int) -> bool:
        """A step of a phase is done; whether to go on."""
        with self._lock:
            if name in self._open:
                self._open[name] = replace(self._open[name], done=index + 1)
                self._tell()
        return not self.cancelled and self.failure is None

    def finish(self, name: str) -> None:
        """A phase ends."""
        with self._lock:
            self._open.pop(name, None)
            self._tell()

    def _tell(self) -> None:
        if self.failure is None:
            try:
                self._show(tuple(self._open.values()))
            except BaseException as error:  # noqa: BLE001  # kept for the thread that waits for the plan
                self.failure = error


@contextmanager
def watched(title: str, report: Report, console: Console | None = None) -> Iterator[Phases]:
    """Phases that are shown while the block runs.

    Args:
        title: what is built.
        report: is told a line now and then where there is no terminal.
        console: where a bar is drawn if it is a terminal; by default standard error.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Phases(_lines(title, report))
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Phases(_bars(title, progress))


def _bars(title: str, progress: Progress) -> Show:
    bars = [progress.add_task(title, total=None)]

    def show(phases: Sequence[Phase]) -> None:
        for depth, phase in enumerate(phases[:_SHOWN]):
            if depth == len(bars):
                bars.append(progress.add_task(""))
            name = f"{title}: {phase.name}" if depth == 0 else f"{'  ' * depth}{phase.name}"
            progress.update(
                bars[depth],
                description=name,
                total=phase.num_steps,
                completed=phase.done,
                visible=True,
            )
        for bar in bars[max(len(phases), 1) :]:
            progress.update(bar, visible=False)

    return show


def _lines(title: str, report: Report) -> Show:
    began = told = time.monotonic()

    def show(phases: Sequence[Phase]) -> None:
        nonlocal told
        now = time.monotonic()
        if phases and now >= told + _TOLD_EVERY:
            told = now
            where = ", ".join(f"{p.name} {p.done}/{p.num_steps}" for p in phases[:_SHOWN])
            report(f"{title}: {now - began:.0f} s, {where}")

    return show
