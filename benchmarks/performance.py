# SPDX-License-Identifier: Apache-2.0
"""What docs/performance.md says of whole generations: goals and floors, and what was measured on GPUs."""

from typing import Any

from benchmarks.headline import (
    BF16_RATE,
    DECODE_TARGET_S,
    EVALUATIONS,
    FP8_RATE,
    WORKLOADS,
    Workload,
    floor_s,
)
from benchmarks.plots import Bar, bars
from benchmarks.results import described, newest

PLOTS = "plots"  # in docs
NOTHING = "Nothing has been measured on a GPU yet."
_COLOURS = {"published": "#8c959f", "baseline": "#bf8700", "exact": "#0969da", "fp8": "#1a7f37", "floor": "#d0d7de"}  # fmt: skip
Line = dict[str, Any]


def goals() -> str:
    """What the original takes, the least the denoiser can take, and what we aim at: known without a GPU."""
    head = "| generation | tokens | original, published | floor, bf16 | floor, 8 bits | target, exact | target, fp8 |"
    rates = (
        f"Floors are {EVALUATIONS} evaluations at {BF16_RATE / 1e12:.0f} and {FP8_RATE / 1e12:.0f} TFLOP/s. "
        f"Decoding 93 frames of 720p shall take {DECODE_TARGET_S:g} s at most."
    )
    return "\n".join([head, "|---|---|---|---|---|---|---|", *map(_goal, WORKLOADS), "", rates])


def _goal(of: Workload) -> str:
    targets = [f"{t:g} s" if t else "" for t in (of.target_exact_s, of.target_fp8_s)]
    floors = [_seconds(floor_s(of)), _seconds(floor_s(of, FP8_RATE))]
    cells = [of.name, f"{of.latent.tokens:,}", f"{of.published_s:g} s", *floors, *targets]
    return f"| {' | '.join(cells)} |"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


def measured() -> dict[str, list[Line]]:
    """The newest result of each generation and engine, by results file; files without any are left out."""
    found = {
        name: [x for x in lines if "workload" in x and "whole_s" in x]
        for name, lines in newest().items()
    }
    return {name: lines for name, lines in found.items() if lines}


def generations() -> str:
    """A table and a plot a generation for every GPU that any was measured on."""
    return "\n\n".join(_machine(*found) for found in measured().items()) or NOTHING


def _machine(name: str, lines: list[Line]) -> str:
    last = lines[-1]
    head = "| generation | original, published | baseline, same run | ours, exact | ours, fp8 | floor, bf16 | with refiner and guardrails |"
    of_lines = {of: [x for x in lines if x["workload"] == of.name] for of in WORKLOADS}
    done = {of: found for of, found in of_lines.items() if found}
    return "\n".join(
        [
            f"### {last['machine'].get('gpu', name)}",
            "",
            f"`{last['command']}` on {described(last)}; {last['date']} (results/{name}.jsonl)",
            "",
            head,
            "|---|---|---|---|---|---|---|",
            *(_generation(*found) for found in done.items()),
            "",
            *(f"![{of.name}]({PLOTS}/{_file(name, of)})" for of in done),
            "",
            _parts(lines),
        ]
    )


def _generation(of: Workload, lines: list[Line]) -> str:
    best = [best_of(lines, column) for column in ("baseline", "exact", "fp8")]
    cells = [of.name, f"{of.published_s:g} s", *map(_cell, best), _seconds(floor_s(of)), ""]
    return f"| {' | '.join(cells)} |"


def best_of(lines: list[Line], column: str) -> Line | None:
    """The quickest of a column: `baseline` is any plain torch, the others are levels of our engine."""
    return min((x for x in lines if _column(x) == column), key=lambda x: x["whole_s"], default=None)


def _column(line: Line) -> str:
    return str(line["level"]) if line["ours"] else "baseline"


def _cell(line: Line | None) -> str:
    if line is None:
        return ""
    return _seconds(line["whole_s"]) + ("" if line["whole"] == "run" else " (sum)")


def _parts(lines: list[Line]) -> str:
    """Where the time goes, a row for each engine."""
    names = ("text_s", "encode_s", "step_s", "decode_s", "whole_s")
    rows = [
        f"| {x['workload']} | {x['title']} | {' | '.join(f'{x[n]:.4g}' for n in names)} | {x['peak_bytes'] / 1e9:.1f} "
        f"| {x['clocks'].get('sm_mhz', '')} | {x['commit']} |"
        for x in lines
    ]
    head = "| generation | engine | prompts, s | frames given, s | a step, s | frames made, s | whole, s | memory, GB | SM, MHz | commit |"
    return "\n".join([head, "|---" * 10 + "|", *rows])


def stages() -> str:
    """The stages around the denoiser, a row for each engine and size."""
    parts = []
    for name, lines in newest().items():
        rows = [
            f"| {x['benchmark']} | {x['median_s']:.4g} | {x['note']} |"
            for x in lines
            if "stage" in x
        ]
        if rows:
            head = ["| stage | s | |", "|---|---|---|"]
            parts.append("\n".join([f"results/{name}.jsonl", "", *head, *rows]))
    return "\n\n".join(parts) or NOTHING


def distance() -> str:
    """How far the level fp8 is from the level exact at the real sizes."""
    rows = [
        f"| {x['workload']} | {name} | {x['solver_steps']} | {x['exact_cosine']:.5f} | {x['fp8_cosine']:.5f} |"
        for name, lines in newest().items()
        for x in lines
        if x["benchmark"].startswith("level.fp8 ")
    ]
    head = "| generation | results | solver steps | exact beside plain torch | fp8 beside exact |"
    return "\n".join([head, "|---|---|---|---|---|", *rows]) if rows else NOTHING


def plots() -> dict[str, str]:
    """SVGs by their file's name: one for each results file and generation."""
    return {
        _file(name, of): _plot(name, of, found)
        for name, lines in measured().items()
        for of in WORKLOADS
        if (found := [x for x in lines if x["workload"] == of.name])
    }


def _file(name: str, of: Workload) -> str:
    return f"{name}-{of.name}.svg"


def _plot(name: str, of: Workload, lines: list[Line]) -> str:
    rows = [
        Bar("original, published", of.published_s, _COLOURS["published"]),
        *(Bar(x["title"], x["whole_s"], _COLOURS[_column(x)]) for x in lines),
        Bar("floor of the denoiser, bf16", floor_s(of), _COLOURS["floor"]),
    ]
    return bars(f"{of.name} on {name}", "s", rows)
