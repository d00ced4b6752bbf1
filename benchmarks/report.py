# SPDX-License-Identifier: Apache-2.0
"""One JSON line a result, with the machine and versions it holds for; and the tables in docs/benchmarks.md.

python benchmarks/report.py        rewrite the tables from benchmarks/results/*.jsonl
"""

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "benchmarks.md"
_PACKAGES = ("torch", "numpy", "onnxruntime", "nvidia-pytriton", "tritonclient", "tensorrt")


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Count, median and spread; with few samples a percentile would be the maximum under another name."""
    return {
        "n": len(seconds),
        "median_s": round(statistics.median(seconds), 6),
        "min_s": round(min(seconds), 6),
        "max_s": round(max(seconds), 6),
    }


def record(benchmark: str, command: str, values: dict[str, object]) -> None:
    """Append one result to the file of this machine's kind."""
    machine = _machine()
    line = {
        "benchmark": benchmark,
        **values,
        "command": command,
        "machine": machine,
        "versions": _versions(),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(machine.get("gpu", "cpu")).lower()).strip("-")
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({"benchmark": benchmark, **values}), flush=True)


def _machine() -> dict[str, object]:
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    found: dict[str, object] = {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }
    query = "name,driver_version,clocks.max.sm,power.limit"
    try:
        out = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return found
    return found | dict(
        zip(("gpu", "driver", "max_sm_clock", "power_limit"), out.split(", "), strict=False)
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str:
    run = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    return run.stdout.strip()


def latest() -> dict[str, list[dict[str, object]]]:
    """The newest timing of every benchmark, by results file; other results have tables of their own."""
    found = {}
    for path in sorted(RESULTS.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line for line in lines if "median_s" in line]
        found[path.stem] = list({line["benchmark"]: line for line in lines}.values())
    return found


def tables() -> str:
    """The newest results as Markdown, a table for each kind of machine and command."""
    parts = []
    for name, lines in latest().items():
        for command in dict.fromkeys(str(line["command"]) for line in lines):
            parts.append(_table(name, command, [x for x in lines if x["command"] == command]))
    return "\n\n".join(parts)


def _table(name: str, command: str, lines: list[dict[str, object]]) -> str:
    last = lines[-1]
    machine = ", ".join(
        f"{v}" if k in ("cpu", "gpu") else f"{k} {v}" for k, v in last["machine"].items()
    )
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items())
    rows = [
        f"| {x['benchmark']} | {x['n']} | {x['median_s']:.4g} | {x['min_s']:.4g} to {x['max_s']:.4g} | {x.get('note', '')} |"
        for x in lines
    ]
    return "\n".join(
        [
            f"`{command}` on {machine}; {versions}; {last['date']} (results/{name}.jsonl)",
            "",
            "| benchmark | runs | median, s | spread, s | note |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def levels() -> str:
    """The newest comparison of the toy's level fp8 with its level exact as a Markdown table, a row a task."""
    lines = [
        json.loads(line)
        for path in sorted(RESULTS.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    newest = {x["benchmark"]: x for x in lines if x["benchmark"].startswith("quality.fp8 ")}
    if not newest:
        return "Not measured yet."
    last = list(newest.values())[-1]
    rates = ("look", "motion", "all")
    head = ["task", "samples", *(f"{r}, {level}" for r in rates for level in ("exact", "fp8"))]
    head += ["PSNR of frames, dB", "cosine of latents"]
    rows = [_level_row(name.removeprefix("quality.fp8 "), x) for name, x in newest.items()]
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


def _level_row(task: str, line: dict[str, object]) -> str:
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
    return f"| {' | '.join(cells)} |"


SECTIONS = {"results": tables, "levels": levels}  # of the page, each between marks of its name


def with_tables(text: str) -> str:
    """A page with the parts between its marks replaced by the tables."""
    for name, make in SECTIONS.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{make()}\n\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    DOCS.write_text(with_tables(DOCS.read_text()))
