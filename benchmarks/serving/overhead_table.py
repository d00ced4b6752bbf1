# SPDX-License-Identifier: Apache-2.0
"""The newest overheads as Markdown: measured with the toy, of single calls, and calculated for the 2B."""

from collections.abc import Sequence
from typing import Any

from benchmarks.results import described, newest

Line = dict[str, Any]  # of a results file


def overhead() -> str:
    """Three tables for each kind of machine."""
    parts = []
    for name, lines in newest().items():
        found = [line for line in lines if line["benchmark"].startswith("overhead")]
        if found:
            last = found[-1]
            parts.append(f"`{last['command']}` on {described(last)}; {last['date']} (results/{name}.jsonl)")  # fmt: skip
            parts += [_toy(found), _trips(found), _calculated(found)]
    return "\n\n".join(parts) or "Not measured yet."


def _toy(lines: Sequence[Line]) -> str:
    head = "request", "pairs", "calls", "served, ms", "in process, ms", "difference, ms", "of the request"  # fmt: skip
    rows = [
        [
            line["benchmark"].removeprefix("overhead "), str(line["n"]), str(line["calls"]),
            *(f"{1e3 * line[key]:.3g}" for key in ("served_s", "in_process_s", "overhead_s")),
            f"{line['share']:.1%}".replace("%", " %"),
        ]
        for line in lines
        if "served_s" in line
    ]  # fmt: skip
    return _table(head, rows)


def _trips(lines: Sequence[Line]) -> str:
    head = "a call with the tensors of a step", "calls", "MB", "median, ms", "least, ms"
    rows = [
        [line["trip"], str(line["n"]), f"{line['bytes'] / 1e6:.3g}", f"{1e3 * line['trip_s']:.3g}", f"{1e3 * line['trip_min_s']:.3g}"]
        for line in lines
        if "trip_s" in line
    ]  # fmt: skip
    return _table(head, rows)


def _calculated(lines: Sequence[Line]) -> str:
    head = "request", "calls", "MB", "calculated, s", "the original's whole request, s", "share"
    rows = [
        [
            line["workload"], str(line["calls"]), f"{line['bytes'] / 1e6:.0f}",
            f"{line['calculated_s']:.3g}", f"{line['published_s']:g}", f"{100 * line['share']:.3g} %",
        ]
        for line in lines
        if "calculated_s" in line
    ]  # fmt: skip
    return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    every = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in every)
