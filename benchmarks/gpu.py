# SPDX-License-Identifier: Apache-2.0
"""All that a GPU is needed for, in sections that can be run one by one: correctness first, then times.

python -m benchmarks.gpu               all sections that haven't passed with these sources
python -m benchmarks.gpu --list        their names, and which have passed
python -m benchmarks.gpu NAME...       these, whatever was before; "time-2b-*" names all that begin so; the kernels are
                                       built first if they weren't of these sources

A section that fails doesn't stop those after it, except that nothing is timed before the kernels are right.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from benchmarks.headline import WORKLOADS
from benchmarks.results import ROOT

LIMIT_S = (
    8 * 60
)  # of a section, so that one fits wherever machines are lent by the quarter of an hour
DONE = ROOT / "build" / "gpu" / "passed.json"
PYTHON = sys.executable
# Named here too, so that the list needs no torch; a test holds them beside the benchmarks' own.
CEILINGS = ("copy", "products", "attention", "convolutions")
STAGES = ("vae-encoder", "vae-decoder", "text-encoder")
KINDS = ("eager", "compiled", "compiled-cudnn", "engine", "recorded", "recorded-fp8")
# Of the tests of kernels, those that compare whole outputs or reach for the edges
SANITIZED = "equals_reference or at_the_limits or half_a_step or no_other_memory"
KERNELS = sorted(path.stem for path in (ROOT / "benchmarks" / "kernels").glob("bench_*.py"))


@dataclass(frozen=True)
class Section:
    """Commands that belong together."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: str = ""  # a program without which it is left out
    before_times: bool = False  # if it fails, nothing is timed


def _module(*arguments: str) -> tuple[tuple[str, ...], ...]:
    return ((PYTHON, "-m", *arguments),)


def _tests(*paths: str) -> tuple[tuple[str, ...], ...]:
    return _module("pytest", "-q", "-m", "gpu and not tensorrt", *paths)


SECTIONS = (
    Section(
        "build",
        (
            ("cmake", "-S", ".", "-B", "build/gpu", "-DCMAKE_BUILD_TYPE=Release"),
            ("cmake", "--build", "build/gpu"),
            ("cmake", "--install", "build/gpu", "--prefix", "kernels"),
        ),
        before_times=True,
    ),
    Section("test-kernels", _tests("tests/kernels"), before_times=True),
    # those that need torch and little else; the others are the developers'
    Section(
        "test-networks",
        _tests("tests/export/networks/test_on_gpu.py", "tests/runtime/torch_networks"),
    ),
    Section(
        "sanitize-kernels",
        (
            (
                # torch's own cache of memory would hide what a kernel writes beside its tensors
                *(
                    "env",
                    "PYTORCH_NO_CUDA_MEMORY_CACHING=1",
                    "compute-sanitizer",
                    "--tool",
                    "memcheck",
                ),
                *(
                    "--error-exitcode",
                    "9",
                    PYTHON,
                    "-m",
                    "pytest",
                    "-q",
                    "-m",
                    "gpu and not tensorrt",
                ),
                *("-k", SANITIZED, "tests/kernels"),
            ),
        ),
        needs="compute-sanitizer",
    ),
    # first, so that kernels can be held beside them
    *(
        Section(f"time-ceilings-{name}", _module("benchmarks.engines.bench_ceilings", name))
        for name in CEILINGS
    ),
    *(Section(f"time-{name[6:]}", _module(f"benchmarks.kernels.{name}")) for name in KERNELS),
    *(Section(f"time-{name}", _module("benchmarks.engines.bench_stages", name)) for name in STAGES),
    Section("time-denoisers", _module("benchmarks.engines.bench_dit")),
    Section("time-batching", _module("benchmarks.engines.bench_batching")),
    Section("level-fp8", _module("benchmarks.engines.bench_levels")),
    *(
        Section(f"time-{of.name}-{k}", _module("benchmarks.engines.bench_workloads", of.name, k))
        for of in WORKLOADS
        for k in KINDS
    ),
    Section("report", _module("benchmarks.report")),
)


def sources() -> str:
    """Digest of what is built, tested and timed; a machine that was lent may have no git."""
    sha = hashlib.sha256()
    for folder in ("spec", "kernels", "export", "runtime", "benchmarks", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh", ".h", ".cpp", ".txt"):
                sha.update(path.read_bytes())
    return sha.hexdigest()


def passed() -> dict[str, float]:
    """Section -> seconds it took, of those that passed with these sources."""
    try:
        found = json.loads(DONE.read_text())
        return dict(found["seconds"]) if found["sources"] == sources() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def run(section: Section, limit_s: float = LIMIT_S) -> str:
    """Run a section's commands; says what went wrong, or nothing."""
    deadline = time.monotonic() + limit_s
    for command in section.commands:
        print(f"$ {' '.join(command)}", flush=True)
        try:
            left = deadline - time.monotonic()
            code = subprocess.run(command, cwd=ROOT, timeout=max(left, 1), check=False).returncode
        except subprocess.TimeoutExpired:
            return f"longer than {limit_s:g} s"
        except OSError as error:
            return str(error)
        if code:
            return f"exit code {code}"
    return ""


def run_all(sections: Sequence[Section]) -> dict[str, str]:
    """Run sections in turn and note those that pass; what went wrong with the others."""
    done, failures, times_are_off = passed(), {}, ""
    for section in sections:
        if section.needs and shutil.which(section.needs) is None:
            print(f"== {section.name}: left out, there is no {section.needs}", flush=True)
            continue
        if section.name.startswith(("time-", "level-")) and times_are_off:
            failures[section.name] = f"not run: {times_are_off} failed"
            continue
        print(f"\n== {section.name}", flush=True)
        began = time.monotonic()
        if reason := run(section):
            failures[section.name] = reason
            times_are_off = section.name if section.before_times else times_are_off
            continue
        done[section.name] = round(time.monotonic() - began, 1)
        DONE.parent.mkdir(parents=True, exist_ok=True)
        DONE.write_text(json.dumps({"sources": sources(), "seconds": done}, indent=1) + "\n")
    return failures


def with_build(chosen: Sequence[Section], done: Container[str]) -> list[Section]:
    """Sections, after the build if it is still to be done: the engine takes plain torch where there are no kernels."""
    use_kernels = any(s.name.startswith(("test-", "sanitize-", "time-", "level-")) for s in chosen)
    build = [s for s in SECTIONS if s.name == "build" and s.name not in done]
    return list(dict.fromkeys([*(build if use_kernels else ()), *chosen]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="sections; see --list")
    parser.add_argument("--list", action="store_true", help="print the sections' names")
    args = parser.parse_args(argv)
    done, by_name = passed(), {section.name: section for section in SECTIONS}
    if args.list:
        for name in by_name:
            print(f"{name:34} {f'passed in {done[name]} s' if name in done else ''}".rstrip())
        return 0
    named = {name: [s for s in SECTIONS if fnmatchcase(s.name, name)] for name in args.names}
    if unknown := [name for name, sections in named.items() if not sections]:
        parser.error(f"{', '.join(unknown)}: no such section; --list names them")
    chosen = list(dict.fromkeys(s for sections in named.values() for s in sections))
    wanted = chosen or [s for s in SECTIONS if s.name not in done]
    failures = run_all(with_build(wanted, done))
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
