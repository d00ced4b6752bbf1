# SPDX-License-Identifier: Apache-2.0
"""One request's progress: how long each stage took, who is told, and whether anyone still waits."""

import time
from collections import defaultdict
from collections.abc import Callable

from predict2_spec.results import Event


class Progress:
    """Books the time of a request's stages, reports steps, and stops the work when it was cancelled."""

    def __init__(self, emit: Callable[[Event], None], check: Callable[[], None]) -> None:
        self._emit = emit
        self._check = check  # raises RequestCancelledError when the caller is gone
        self._start = self._last = time.monotonic()
        self._seconds: dict[str, float] = defaultdict(float)

    def done(self, stage: str, step: int = 1, of: int = 1) -> None:
        """Step `step` of `of` in `stage` is finished; all time since the last call goes to `stage`.

        Raises:
            RequestCancelledError: the caller went away.
        """
        now = time.monotonic()
        self._seconds[stage] += now - self._last
        self._last = now
        self._emit(Event(stage, step, of, round(now - self._start, 3)))
        self._check()

    def beside(self) -> "Progress":
        """Progress of work that runs beside other work of the same request, with a clock of its own."""
        return Progress(self._emit, self._check)

    def seconds(self) -> dict[str, float]:
        """Seconds spent in each stage so far, and in all."""
        total = time.monotonic() - self._start
        return {**{k: round(v, 3) for k, v in self._seconds.items()}, "total": round(total, 3)}
