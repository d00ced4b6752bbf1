# SPDX-License-Identifier: Apache-2.0
"""How many GPUs a traffic of requests needs, by simulating its queue.

Requests come at random, independent of each other (a Poisson process), and take what their task takes, always the
same. A GPU works on one at a time, first come, first served; a server that interleaves two ends both later, and its
GPU does the same work.
"""

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset, Task

from .gpus import Gpu
from .plan import make_plan

HOUR_S = 3600.0
MOST_GPUS = 16_384
# random: each GPU has a queue of its own, and whoever hands requests out doesn't look at them, as a proxy doesn't.
# idle: one queue before all; the best there can be.
Balance = Literal["random", "idle"]
Measure = Literal["mean", "p95"]
Level = Literal["exact", "fp8"]

_REQUESTS = 100_000  # simulated, and for one queue before many GPUs this many of each:
_REQUESTS_A_GPU = 100
_EMPTY_START = 0.2  # of them come before queues have their usual length, and don't count


@dataclass(frozen=True)
class Duration:
    """How long a GPU works on one request of a task."""

    seconds: float
    source: str  # where the number is from, in words
    measured: bool


@dataclass(frozen=True)
class Stream:
    """Requests of one task."""

    task: Task
    per_hour: float
    duration: Duration


@dataclass(frozen=True)
class Traffic:
    """All requests that come."""

    streams: tuple[Stream, ...]

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return sum(stream.per_hour for stream in self.streams) / HOUR_S

    @property
    def busy_gpus(self) -> float:
        """GPUs at work in the mean: offered load, in erlangs."""
        return sum(s.per_hour * s.duration.seconds for s in self.streams) / HOUR_S


@dataclass(frozen=True)
class Service:
    """What so many GPUs make of a traffic."""

    gpus: int
    utilisation: float  # 0 to 1
    mean_wait_s: float  # before the work begins
    p95_wait_s: float
    mean_waiting: float  # requests in all queues, by Little's law

    def wait_s(self, measure: Measure) -> float:
        """The wait by that measure."""
        return self.mean_wait_s if measure == "mean" else self.p95_wait_s


def floor_duration(preset: Preset, gpu: Gpu, task: Task, level: Level) -> Duration:
    """The least a GPU can take, at its peak rate.

    Raises:
        InvalidRequestError: the preset doesn't serve the task.
    """
    plan = make_plan(preset, gpu, task)
    seconds = plan.fp8_seconds if level == "fp8" else plan.bf16_seconds
    return Duration(seconds, f"floor of {gpu.name}, no measurement", measured=False)


def measured_duration(
    results: Iterable[Mapping[str, Any]], preset: str, task: Task, level: Level
) -> Duration | None:
    """The quickest of our engines in the results of whole generations; None where there is none.

    Args:
        results: lines of a file of benchmarks/results.
        preset: its name.
        task: text2world is a picture and a clip, one after the other.
        level: of the engine.
    """
    if task == "text2world":
        rows = list(results)
        parts = [measured_duration(rows, preset, t, level) for t in ("text2image", "video2world")]
        if not all(parts):
            return None
        found = [part for part in parts if part]
        return Duration(sum(part.seconds for part in found), found[-1].source, measured=True)
    lines = [
        line
        for line in results
        if line.get("workload") == f"{preset}-{task}" and line.get("ours") and line.get("level") == level
    ]  # fmt: skip
    if not lines:
        return None
    best = min(lines, key=lambda line: float(line["whole_s"]))
    machine = best.get("machine", {})
    where = machine.get("gpu", machine.get("cpu", "a machine"))
    return Duration(float(best["whole_s"]), f"measured on {where}, {best.get('date')}", measured=True)  # fmt: skip


def parse_traffic(text: str) -> dict[Task, float]:
    """{task: requests an hour} from such as video2world=30,text2image=120.

    Raises:
        InvalidRequestError: that isn't it.
    """
    rates: dict[Task, float] = {}
    tasks: dict[str, Task] = {t: t for t in ("text2image", "video2world", "text2world")}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        try:
            rate = float(number)
        except ValueError:
            rate = math.nan
        if name not in tasks or tasks[name] in rates or not 0 < rate < math.inf:
            raise InvalidRequestError(
                f"traffic {text!r:.80} must be requests an hour of each task, such as video2world=30,text2image=120"
            )
        rates[tasks[name]] = rate
    return rates


def waits(arrivals: NDArray[np.float64], services: NDArray[np.float64], gpus: int) -> NDArray[np.float64]:  # fmt: skip
    """How long each request waits: one queue, first come, first served, for the GPU that is free first.

    Args:
        arrivals: [N] seconds, ascending.
        services: [N] seconds of work.
        gpus: 1 or more.

    Returns:
        [N] seconds.
    """
    free = [0.0] * gpus  # when each GPU is done with what it was given; a heap
    found = np.empty(len(arrivals))
    for index, (at, takes) in enumerate(zip(arrivals.tolist(), services.tolist(), strict=True)):
        begins = max(at, free[0])
        heapq.heapreplace(free, begins + takes)
        found[index] = begins - at
    return found


def simulate(traffic: Traffic, gpus: int, balance: Balance, seed: int = 0) -> Service:
    """Run the traffic through so many GPUs.

    Raises:
        InvalidRequestError: they can't keep up, so that the queue would grow without end.
    """
    utilisation = traffic.busy_gpus / gpus
    if not utilisation < 1:
        raise InvalidRequestError(
            f"{gpus} GPUs can't keep up: the traffic is work for {traffic.busy_gpus:.1f}"
        )
    # A Poisson process that is dealt out at random is one for every GPU, and all GPUs fare alike.
    queues, servers = (gpus, 1) if balance == "random" else (1, gpus)
    random = np.random.default_rng(seed)
    count = max(_REQUESTS, _REQUESTS_A_GPU * servers)
    arrivals = np.cumsum(random.exponential(queues / traffic.per_second, count))
    shares = np.array([s.per_hour for s in traffic.streams])
    durations = np.array([s.duration.seconds for s in traffic.streams])
    services = durations[random.choice(len(shares), count, p=shares / shares.sum())]
    settled = waits(arrivals, services, servers)[int(_EMPTY_START * count) :]
    mean = float(settled.mean())
    return Service(gpus, utilisation, mean, float(np.quantile(settled, 0.95)), traffic.per_second * mean)  # fmt: skip


def gpus_needed(traffic: Traffic, target_s: float, measure: Measure, balance: Balance) -> Service:
    """The fewest GPUs with which requests wait no longer than that.

    Raises:
        InvalidRequestError: more than MOST_GPUS.
    """

    def enough(gpus: int) -> bool:
        return simulate(traffic, gpus, balance).wait_s(measure) <= target_s

    too_few = math.floor(traffic.busy_gpus)
    many = too_few + 1
    while many <= MOST_GPUS and not enough(many):
        too_few, many = many, many + max(1, many // 4)
    if many > MOST_GPUS:
        raise InvalidRequestError(
            f"the traffic is work for {traffic.busy_gpus:.0f} GPUs at least; this plans up to {MOST_GPUS}"
        )
    while many - too_few > 1:
        middle = (many + too_few) // 2
        too_few, many = (too_few, middle) if enough(middle) else (middle, many)
    return simulate(traffic, many, balance)


def around(traffic: Traffic, gpus: int, balance: Balance, rows: int = 8) -> list[Service]:
    """Services of fewer and of more GPUs than that, from the fewest that keep up."""
    least = math.floor(traffic.busy_gpus) + 1
    step = max(1, (gpus - least) // (rows // 2))
    counts = {gpus + step * k for k in range(-(rows // 2), rows // 2)} | {least}
    return [simulate(traffic, count, balance) for count in sorted(counts) if count >= least]
