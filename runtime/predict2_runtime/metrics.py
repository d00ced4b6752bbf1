# SPDX-License-Identifier: Apache-2.0
"""Counters and gauges of our own on Triton's metrics endpoint.

Triton 2.51 adds up what processes report under the same name and labels. A call that it refuses (a counter made less, a
family that was deleted) may end the process, so families are kept as long as their metrics, and nothing counts down.
"""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

from predict2_spec.guardrails import Verdict

from .following import StateFolder
from .logs import write_outcome
from .outcomes import Outcome, Status
from .progress import Progress
from .stages import Arrays

Handler = Callable[[Arrays, Progress], dict[str, Any]]

STATUSES: tuple[Status, ...] = get_args(Status)
SHARED_MEMORY = Path("/dev/shm")  # tensors go through it from model to model
# Seconds; a toy's picture takes one, a clip of the largest network half an hour.
BUCKETS = (
    1.0,
    2.0,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    180.0,
    300.0,
    600.0,
    1200.0,
    1800.0,
    3600.0,
)


@dataclass
class _Family:
    """Metrics of one name, made when their labels are first seen."""

    pb_utils: Any
    kind: str  # COUNTER, GAUGE or HISTOGRAM
    name: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = self.pb_utils.MetricFamily
        self._family = kinds(
            name=self.name, description=self.description, kind=getattr(kinds, self.kind)
        )
        self._metrics: dict[tuple[tuple[str, str], ...], Any] = {}

    def __call__(self, **labels: str) -> Any:
        key = tuple(sorted(labels.items()))
        if key not in self._metrics:
            self._metrics[key] = self._family.Metric(labels=labels, **self.options)
        return self._metrics[key]


class Metrics:
    """What a pipeline's process counts.

    Args:
        pb_utils: Triton's module.
        model: Triton's name of the pipeline.
        preset: what its server serves.
        state: where its server keeps results, if it does.
    """

    def __init__(
        self, pb_utils: Any, model: str, preset: str, state: StateFolder | None = None
    ) -> None:
        def family(kind: str, name: str, description: str, **options: Any) -> _Family:
            return _Family(pb_utils, kind, f"predict2_{name}", description, options)

        self._model, self._state = model, state
        self._requests = family("COUNTER", "requests_total", "Requests that ended, by how")
        self._seconds = family("HISTOGRAM", "request_seconds", "Seconds of requests that ended well", buckets=list(BUCKETS))  # fmt: skip
        self._stages = family("COUNTER", "stage_seconds_total", "Seconds that requests spent in each stage")  # fmt: skip
        self._steps = family("COUNTER", "steps_total", "Solver steps done")
        self._running = family("GAUGE", "running", "Requests being worked on")
        self._blocked = family("COUNTER", "blocked_total", "Texts and frames that a guardrail refused")  # fmt: skip
        self._kept = family("GAUGE", "kept_bytes", "Bytes of the results that the server keeps")
        self._shared_memory = family("GAUGE", "shared_memory_bytes", "Room in /dev/shm, all and used")  # fmt: skip
        build = family("GAUGE", "build_info", "1; the labels say what is served")
        start = family("GAUGE", "start_time_seconds", "When the model's processes started, Unix time")  # fmt: skip
        build(version=version("cosmos-predict2-triton"), preset=preset).set(1)
        start(model=model).set(time.time())
        self._of_the_start = build, start
        for status in STATUSES:  # rates need a zero to begin at
            self._requests(model=model, outcome=status).increment(0)
        self._seconds(model=model)
        self._steps(model=model).increment(0)
        self._running(model=model).increment(0)
        self._tell_room()

    def count_blocked(self, verdict: Verdict) -> None:
        """Count a refusal, by what was refused, which guardrail did and why."""
        labels = {k: getattr(verdict, k) for k in ("subject", "check", "category")}
        self._blocked(**labels).increment(1)

    def observe(self, outcome: Outcome) -> None:
        """Count a request that ended, and write it to the log."""
        self._requests(model=self._model, outcome=outcome.status).increment(1)
        self._steps(model=self._model).increment(outcome.steps)
        for stage, seconds in outcome.seconds.items():
            if stage != "total":
                self._stages(model=self._model, stage=stage).increment(max(0.0, seconds))
        if outcome.status == "ok":
            self._seconds(model=self._model).observe(outcome.seconds.get("total", 0.0))
        self._tell_room()
        write_outcome(outcome)

    def _tell_room(self) -> None:
        with suppress(OSError):  # a folder that just went away is no reason to fail a request
            room = shutil.disk_usage(SHARED_MEMORY)
            self._shared_memory(kind="total").set(room.total)
            self._shared_memory(kind="used").set(room.used)
            self._kept().set(self._state.ended.size() if self._state else 0)

    def running(self, handler: Handler) -> Handler:
        """The same handler, whose requests count as running while it works on them."""

        def run(inputs: Arrays, progress: Progress) -> dict[str, Any]:
            gauge = self._running(model=self._model)
            gauge.increment(1)
            try:
                return handler(inputs, progress)
            finally:
                gauge.increment(-1)

        return run


def stage_observer(pb_utils: Any, model: str) -> Callable[[Outcome], None]:
    """What is to be told of each call of a stage: it goes to the log, and the stage's memory on the GPU to the metrics.

    Args:
        pb_utils: Triton's module.
        model: Triton's name of the stage.
    """
    family = _Family(pb_utils, "GAUGE", "predict2_gpu_memory_bytes", "GPU memory that torch holds for a model's processes")  # fmt: skip
    told = 0

    def tell_memory() -> None:
        nonlocal told
        held = _gpu_memory()
        family(model=model).increment(held - told)  # so processes of one model add up
        told = held

    def observe(outcome: Outcome) -> None:
        write_outcome(outcome, stage=True)
        tell_memory()

    tell_memory()
    return observe


def _gpu_memory() -> int:
    """Bytes that this process's torch has taken; none where no engine of it computes on a GPU."""
    torch = sys.modules.get("torch")  # it isn't imported before an engine needs it
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.memory_reserved())
