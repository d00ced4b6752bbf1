# SPDX-License-Identifier: Apache-2.0
"""What perf_analyzer's runs came to: one table for the docs, and a page with plots that needs nothing beside it."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.results import described, newest

from .charts import Bar, curves, stacked

Line = dict[str, Any]  # of a results file
_NAMES = ("waits", "computes", "around it")
_HEAD = (
    "model",
    "way",
    "at once",
    "requests",
    "p50, ms",
    "p95, ms",
    "first event, ms",
    "requests/s",
    *(f"{name}, ms" for name in _NAMES),
)
_STYLE = (
    "body{font-family:sans-serif;margin:2em;color:#24292f}table{border-collapse:collapse;font-size:13px}"
    "td,th{border:1px solid #d0d7de;padding:3px 8px;text-align:right}td:nth-child(-n+2){text-align:left}"
)


def runs() -> dict[str, list[Line]]:
    """The newest result of every run, by results file; files without any are left out."""
    found = {
        name: [line for line in lines if "way" in line and "throughput" in line]
        for name, lines in newest().items()
    }
    return {name: lines for name, lines in found.items() if lines}


def cells(line: Line) -> list[str]:
    """A row of the table; times in milliseconds."""
    tail = _ms(line["p95_s"]) if "p95_s" in line else f"{_ms(line['max_s'])} (max)"
    first = _ms(line["first_s"]) if "first_s" in line else ""
    # Clips made side by side wait and compute for longer than their request takes.
    split = [_ms(line[key]) for key in ("queue_s", "compute_s")]
    split.append(_ms(line["around_s"]) if line["around_s"] >= 0 else "")
    return [
        line["model"],
        line["way"],
        str(line["concurrency"]),
        str(line["n"]),
        _ms(line["p50_s"]),
        tail,
        first,
        f"{line['throughput']:.3g}",
        *split,
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def table() -> str:
    """The newest runs as Markdown, a table for each kind of machine."""
    return "\n\n".join(_table(*found) for found in runs().items()) or "Not measured yet."


def _table(name: str, lines: Sequence[Line]) -> str:
    last = lines[-1]
    origin = f"`{last['command']}` on {described(last)}; {last['date']} (results/{name}.jsonl)"
    rows = [_HEAD, ["---"] * len(_HEAD), *map(cells, lines)]
    return "\n".join([origin, "", *(f"| {' | '.join(row)} |" for row in rows)])


def html() -> str:
    """The newest runs as one page: the table, and plots of latency, throughput and where the time goes."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>Serving</title><style>{_STYLE}</style><h1>Serving</h1>"
    ]
    for lines in runs().values():
        last = lines[-1]
        parts.append(f"<p>{escape(described(last))}; {escape(last['date'])}</p>")
        parts += _plots(lines)
        head = "".join(f"<th>{escape(name)}</th>" for name in _HEAD)
        rows = ["".join(f"<td>{escape(cell)}</td>" for cell in cells(line)) for line in lines]
        parts.append(f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")
    return "\n".join(parts)


def _plots(lines: Sequence[Line]) -> list[str]:
    by_model: dict[str, list[Line]] = {}
    for line in lines:
        if line["way"].startswith("gRPC"):
            by_model.setdefault(line["model"], []).append(line)
    found = ["<h2>Latency and throughput by requests at once</h2>"]
    for model, of_model in by_model.items():
        if len(of_model) < 2:
            continue
        tail = "p95" if all("p95_s" in line for line in of_model) else "max"
        latency = {
            "p50": {line["concurrency"]: 1e3 * line["p50_s"] for line in of_model},
            tail: {line["concurrency"]: 1e3 * line[f"{tail}_s"] for line in of_model},
        }
        rate = {"requests/s": {line["concurrency"]: line["throughput"] for line in of_model}}
        found += [
            curves(f"{model}: latency", "ms", latency),
            curves(f"{model}: throughput", "", rate),
        ]
    return [*found, "<h2>Where the mean request spends its time</h2>", _splits(lines)]


def _splits(lines: Sequence[Line]) -> str:
    # Milliseconds and seconds in one plot would hide the milliseconds: shares of each request's own time.
    rows = []
    for line in lines:
        parts = [line["queue_s"], line["compute_s"], max(line["around_s"], 0.0)]
        label = f"{line['model']}, {line['way']}, {line['concurrency']} at once"
        rows.append(Bar(label, tuple(100 * part / (sum(parts) or 1.0) for part in parts)))
    return stacked("Share of the mean request", "%", _NAMES, rows)


def write_page(path: Path) -> Path:
    """Write the page and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html())
    return path
