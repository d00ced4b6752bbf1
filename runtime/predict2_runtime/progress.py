# SPDX-License-Identifier: Apache-2.0
"""One request's progress: how long each stage took, who is told, and whether anyone still waits."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from predict2_spec.results import Event

_SOLVER = "denoise_"  # how the stages are named that run the solver


class Progress:
    """Books the time of a request's stages, reports steps, and stops the work when it was cancelled."""

    def __init__(self, emit: Callable[[Event], None], check: Callable[[], None]) -> None:
        self._emit = emit
        self._check = check  # raises RequestCancelledError when the work is to stop
        self._start = self._last = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)
        self._steps = 0
        self._beside: list[Progress] = []
        self._pace_from = self._start  # when the running stage's first step was done
        self._more_to_come = False

    def done(self, stage: str, step: int = 1, of: int = 1) -> None:
        """Step `step` of `of` in `stage` is finished; all time since the last call goes to `stage`.

        Raises:
            RequestCancelledError: nobody waits for the result any more, or nobody may.
        """
        now = time.monotonic()
        self._seconds[stage] += now - self._last
        eta_s = None
        if stage.startswith(_SOLVER):
            self._steps += 1
            eta_s = self._rest(now, step, of)
        self._last = now
        self._emit(Event(stage, step, of, round(now - self._start, 3), eta_s))
        self._check()

    def _rest(self, now: float, step: int, of: int) -> float | None:
        """Seconds that the solver needs yet, at the mean pace so far.

        The first step is slower than the others (caches fill, graphs are recorded), so it only counts while it is the
        only one.
        """
        if step == 1:
            self._pace_from, pace = now, now - self._last
        else:
            pace = (now - self._pace_from) / (step - 1)
        return None if self._more_to_come else round(pace * (of - step), 3)

    @contextmanager
    def more_to_come(self) -> Iterator[None]:
        """While the block runs, how long the request takes yet can't be told: another solver follows this one."""
        self._more_to_come = True
        try:
            yield
        finally:
            self._more_to_come = False

    def beside(self) -> "Progress":
        """Progress of work that runs beside other work of the same request, with a clock of its own."""
        self._beside.append(Progress(self._emit, self._check))
        return self._beside[-1]

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far, and in all, without what runs beside."""
        total = time.monotonic() - self._start
        return {**{k: round(v, 3) for k, v in self._seconds.items()}, "total": round(total, 3)}

    def all_seconds(self) -> dict[str, float]:
        """The same, with what runs beside added to each stage; the total is the request's own."""
        found = self.seconds()
        for other in self._beside:
            for stage, seconds in other._seconds.items():
                found[stage] = round(found.get(stage, 0.0) + seconds, 3)
        return found

    def all_steps(self) -> int:
        """Steps of the solver done so far, also in what runs beside."""
        return self._steps + sum(other._steps for other in self._beside)
