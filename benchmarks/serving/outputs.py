# SPDX-License-Identifier: Apache-2.0
"""What perf_analyzer wrote, read: every request's times from its export, Triton's from its CSV and its text."""

import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 20  # requests; of fewer, the 95th percentile is the maximum under another name


class RunFailedError(RuntimeError):
    """A run has no result; the message says why."""


@dataclass(frozen=True)
class Export:
    """The requests of a run, in seconds."""

    seconds: tuple[float, ...]  # from sending to the last response
    first: tuple[float, ...]  # from sending to the first
    span: float  # from the first request's sending to the last response


def read_export(text: str) -> Export:
    """The times in a profile export of one experiment.

    Raises:
        RunFailedError: a stream's response was an error, or there are no requests.
    """
    (experiment,) = json.loads(text)["experiments"]
    requests = [request for request in experiment["requests"] if request["response_timestamps"]]
    if not requests:
        raise RunFailedError("no request was answered")
    for request in requests:
        for response in request.get("response_outputs", ()):
            if response.get("error"):
                raise RunFailedError(f"the server answered {response['error']:.300}")
    sent = [request["timestamp"] for request in requests]
    last = [request["response_timestamps"][-1] for request in requests]
    first = [request["response_timestamps"][0] for request in requests]
    return Export(
        tuple(1e-9 * (b - a) for a, b in zip(sent, last, strict=True)),
        tuple(1e-9 * (b - a) for a, b in zip(sent, first, strict=True)),
        1e-9 * (max(last) - min(sent)),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of the values don't exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


@dataclass(frozen=True)
class Split:
    """Mean seconds of a request in one model, by Triton's own statistics."""

    queue: float
    compute: float  # input, inference and output


def read_csv(text: str) -> Split:
    """The split of a run's model; of one that calls others, their time is in its own."""
    (row,) = csv.DictReader(text.splitlines())
    parts = ("Input", "Infer", "Output")
    compute = sum(float(row[f"Server Compute {part}"]) for part in parts)
    return Split(1e-6 * float(row["Server Queue"]), 1e-6 * compute)


_COUNT = re.compile(r"^\s+Successful request count: (\d+)", re.MULTILINE)
_TIMES = re.compile(r"(queue|compute(?: input| infer| output)?) (\d+) usec")
_COMPOSING = re.compile(r"^\s*Composing models:\s*$", re.MULTILINE)
_MODEL = re.compile(r"^ {2}(\w+), version: *\S*$", re.MULTILINE)


def read_stages(text: str) -> dict[str, Split]:
    """From perf_analyzer's text: each stage's share of the mean request, all its calls together."""
    head, *rest = _COMPOSING.split(text, maxsplit=1)
    if not rest:
        return {}
    requests = int(_COUNT.findall(head)[-1])
    _, *parts = _MODEL.split(rest[0])
    found = {}
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        calls = int(_COUNT.findall(part)[0])
        if calls:
            times = {what: int(value) for what, value in _TIMES.findall(part)}
            queue = times.pop("queue")
            per_request = 1e-6 * calls / requests
            found[name] = Split(per_request * queue, per_request * sum(times.values()))
    return found


@dataclass(frozen=True)
class Measured:
    """A run's result, in seconds."""

    export: Export
    split: Split
    stages: dict[str, Split]  # of a public model

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.export.seconds) / self.export.span

    @property
    def queue(self) -> float:
        """Mean wait for a free instance, of the model and of the stages it calls."""
        return self.split.queue + sum(stage.queue for stage in self.stages.values())

    @property
    def compute(self) -> float:
        """Mean time in the model, or in the stages it calls where it calls any."""
        if not self.stages:
            return self.split.compute
        return sum(stage.compute for stage in self.stages.values())

    def values(self) -> dict[str, object]:
        """For the results file; the 95th percentile only where there are enough requests."""
        seconds = self.export.seconds
        around = sum(seconds) / len(seconds) - self.queue - self.compute
        found = {
            "p50_s": quantile(seconds, 0.5),
            "p95_s": quantile(seconds, 0.95),
            "max_s": max(seconds),
            "throughput": self.throughput,
            "queue_s": self.queue,
            "compute_s": self.compute,
            "around_s": around,
        }
        if len(seconds) < ENOUGH:
            del found["p95_s"]
        if self.export.first != seconds:  # a stream
            found["first_s"] = quantile(self.export.first, 0.5)
        return {"n": len(seconds), **{k: round(v, 6) for k, v in found.items()}}
