# SPDX-License-Identifier: Apache-2.0
"""One JSON line a result, with the machine and versions it holds for, in a file for each kind of machine."""

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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_PACKAGES = ("torch", "numpy", "onnxruntime", "nvidia-pytriton", "tritonclient", "tensorrt")


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Count, median and spread; with few samples a percentile would be the maximum under another name."""
    return {
        "n": len(seconds),
        "median_s": round(statistics.median(seconds), 6),
        "min_s": round(min(seconds), 6),
        "max_s": round(max(seconds), 6),
        **({"clocks": clocks} if (clocks := getattr(seconds, "clocks", None)) else {}),
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
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    RESULTS.mkdir(exist_ok=True)
    with results_file(machine).open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({"benchmark": benchmark, **values}), flush=True)


def results_file(machine: dict[str, object] | None = None) -> Path:
    """Where results of a kind of machine are, by default of this one's."""
    kind = str((machine or _machine()).get("gpu", "cpu"))
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', kind.lower()).strip('-')}.jsonl"


def results_of(path: Path) -> list[dict[str, Any]]:
    """All results in a file, the oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def newest() -> dict[str, list[dict[str, Any]]]:
    """The newest result of every benchmark, by kind of machine."""
    return {
        path.stem: list({line["benchmark"]: line for line in results_of(path)}.values())
        for path in sorted(RESULTS.glob("*.jsonl"))
    }


def described(line: dict[str, Any]) -> str:
    """The machine and the versions of a result."""
    machine = ", ".join(
        f"{v}" if k in ("cpu", "gpu") else f"{k} {v}" for k, v in line["machine"].items()
    )
    return f"{machine}; {', '.join(f'{k} {v}' for k, v in line['versions'].items())}"


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


def commit() -> str:
    """Of the checkout; where a copy was sent without its git, what PREDICT2_COMMIT says."""
    if told := os.environ.get("PREDICT2_COMMIT"):
        return told
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:  # there is no git
        return ""
    return run.stdout.strip()
