# SPDX-License-Identifier: Apache-2.0
"""The tables and plots of the docs, from the results files.

python -m benchmarks.report        rewrite them from benchmarks/results/*.jsonl
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import performance
from benchmarks.results import ROOT, described, newest
from benchmarks.serving.overhead_table import overhead
from benchmarks.serving.page import table as serving

DOCS = ROOT / "docs"
LEVELS = {
    "quality.fp8 ": "ONNX Runtime",
    "quality.fp8-torch ": "torch",
}  # by what results begin with


def tables() -> str:
    """The newest timings as Markdown, a table for each kind of machine and command."""
    parts = []
    for name, lines in newest().items():
        timings = [x for x in lines if "median_s" in x]  # other results have tables of their own
        for command in dict.fromkeys(str(x["command"]) for x in timings):
            parts.append(_table(name, command, [x for x in timings if x["command"] == command]))
    return "\n\n".join(parts)


def _table(name: str, command: str, lines: list[dict[str, Any]]) -> str:
    last = lines[-1]
    rows = [
        f"| {x['benchmark']} | {x['n']} | {x['median_s']:.4g} | {x['min_s']:.4g} to {x['max_s']:.4g} | {x.get('note', '')} |"
        for x in lines
    ]
    return "\n".join(
        [
            f"`{command}` on {described(last)}; {last['date']} (results/{name}.jsonl)",
            "",
            "| benchmark | runs | median, s | spread, s | note |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def levels() -> str:
    """The newest comparisons of the toy's level fp8 with its level exact, a row for each engine and task."""
    lines = [x for of_machine in newest().values() for x in of_machine]
    found = [
        (engine, x["benchmark"].removeprefix(begin), x)
        for begin, engine in LEVELS.items()
        for x in lines
        if x["benchmark"].startswith(begin)
    ]
    if not found:
        return "Not measured yet."
    last = found[-1][2]
    rates = ("look", "motion", "all")
    head = ["engine", "task", "samples"]
    head += [f"{r}, {level}" for r in rates for level in ("exact", "fp8")]
    head += ["PSNR of frames, dB", "cosine of latents"]
    rows = [f"| {engine} | {_level_row(task, x)}" for engine, task, x in found]
    return "\n".join(
        [
            f"`{last['command']}` on {last['machine']['cpu']}; {last['date']}. Rates with their 95 % intervals; of PSNR and "
            "cosine the median, and what a tenth of the samples is below",
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *rows,
        ]
    )


def _level_row(task: str, line: dict[str, Any]) -> str:
    cells = [task, str(line["samples"])]
    for rate in ("look", "motion", "all"):
        for name in (f"{rate}_exact", f"{rate}_fp8"):
            if name not in line:  # a picture has no motion
                cells.append("")
                continue
            low, high = line[f"{name}_95"]
            cells.append(f"{line[name]:.0%} ({low:.0%} to {high:.0%})")
    cells.append(f"{line['psnr_db']:.1f} ({line['psnr_db_lowest_tenth']:.1f})")
    cells.append(f"{line['latent_cosine']:.4f} ({line['latent_cosine_lowest_tenth']:.4f})")
    return f"{' | '.join(cells)} |"


# What each page has between marks of these names
PAGES: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "benchmarks.md": {
        "results": tables,
        "serving": serving,
        "overhead": overhead,
        "levels": levels,
    },
    "performance.md": {
        "goals": performance.goals,
        "generations": performance.generations,
        "stages": performance.stages,
        "distance": performance.distance,
    },
}


def with_tables(text: str, sections: Mapping[str, Callable[[], str]]) -> str:
    """A page with the parts between its marks made anew."""
    for name, make in sections.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{make()}\n\n{end}{rest.split(end)[1]}"
    return text


def write(docs: Path = DOCS) -> None:
    """Rewrite the pages in a folder, and the plots that they show."""
    for name, sections in PAGES.items():
        page = docs / name
        page.write_text(with_tables(page.read_text(), sections))
    for name, plot in performance.plots().items():
        (docs / performance.PLOTS).mkdir(exist_ok=True)
        (docs / performance.PLOTS / name).write_text(plot)


if __name__ == "__main__":
    write()
