# SPDX-License-Identifier: Apache-2.0
"""perf_analyzer against every public model and stage: latency, throughput, and where a request waits and computes.

make bench                                                             the toy on this machine, all of it
python -m benchmarks.serving.bench_sweep --repository DIR --url HOST:PORT     a server that runs already; what it
                                                                       can't answer, such as shared memory, is left out
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import ROOT, record
from predict2_runtime.repository import read_preset
from predict2_spec.presets import Preset

from . import perf_analyzer, servers
from .inputs import write_inputs
from .outputs import Measured, RunFailedError, read_csv, read_export, read_stages
from .page import write_page
from .runs import Files, Run, arguments, plan, stages_of

COMMAND = "make bench"
OUTPUT = ROOT / "build" / "bench"
FLAGS = ("--allow-http-inference", "--allow-stage-calls", "--reasoner")
ATTEMPTS = 2  # perf_analyzer 2.60.0 sometimes waits on when all requests are answered


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    tool: Path
    preset: Preset
    served: frozenset[str]  # models
    folder: Path
    run_timeout_s: float = 120


def measure(bench: Bench, run: Run, url: str) -> Measured:
    """One run and its result.

    Raises:
        RunFailedError: perf_analyzer failed, or a request did.
    """
    files = Files.of(run, bench.folder / "inputs", bench.folder / "runs")
    files.csv.parent.mkdir(parents=True, exist_ok=True)
    command = [str(bench.tool), *arguments(run, url, files, stages_of(run, bench.served))]
    done = _finished(command, files, bench.run_timeout_s)
    if done.returncode:
        raise RunFailedError(f"exit code {done.returncode}: {_reason(done)}")
    export = read_export(files.export.read_text())
    return Measured(export, read_csv(files.csv.read_text()), read_stages(done.stdout))


def _finished(
    command: Sequence[str], files: Files, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    for _ in range(ATTEMPTS):
        files.export.unlink(missing_ok=True)  # perf_analyzer writes over none
        with suppress(subprocess.TimeoutExpired):
            return subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=timeout_s
            )
    raise RunFailedError(
        f"no end after {timeout_s:g} s, {ATTEMPTS} times; allow longer with --run-timeout"
    )


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    said = " ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-2:])
    # how perf_analyzer puts it that a stage it was told of was never called
    uncalled = "requested model version" in said
    return f"{said} (the requests failed before any stage was called)" if uncalled else said


def result_of(run: Run, preset: Preset, measured: Measured) -> dict[str, object]:
    """A line of the results file."""
    asked = {"model": run.inputs, "way": run.way, "concurrency": run.concurrency}
    return {"preset": preset.name, **asked, **measured.values()}


def _measure_all(bench: Bench, runs: Sequence[Run], server: servers.Server) -> list[str]:
    """Measure and record; what failed, in words."""
    failed = []
    for run in runs:
        url = server.grpc if run.protocol == "grpc" else server.http
        try:
            measured = measure(bench, run, url)
        except RunFailedError as error:
            failed.append(f"{run.name}: {error}")
            continue
        record(run.name, COMMAND, result_of(run, bench.preset, measured))
    return failed


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, required=True, help="what is served")
    parser.add_argument("--url", help="gRPC address of a running server (default: start one)")
    parser.add_argument("--http-url", default="127.0.0.1:8000", help="its HTTP address")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="inputs, runs and report")
    parser.add_argument("--only", default="", metavar="REGEX", help="runs to make, by their names")
    parser.add_argument(
        "--requests", type=int, help="of each run; few for models that take minutes"
    )
    parser.add_argument(
        "--run-timeout",
        type=float,
        default=120,
        metavar="S",
        help="seconds that a run may take (%(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    """Measure, record, write the report; 1 when a run failed."""
    args = _options()
    preset = read_preset(args.repository)
    served = frozenset(path.parent.name for path in args.repository.glob("*/config.pbtxt"))
    try:
        tool = perf_analyzer.find()
    except perf_analyzer.ToolError as error:
        print(f"bench_sweep: {error}", file=sys.stderr)
        return 1
    bench = Bench(tool, preset, served, args.output, args.run_timeout)
    runs = plan(preset, served, args.requests)
    runs = [run for run in runs if re.search(args.only, run.name)]
    write_inputs(preset, {run.inputs for run in runs}, args.output / "inputs")
    failed = []
    with ExitStack() as stack:
        if args.url:
            server = servers.Server(args.url, args.http_url)
        else:
            url = stack.enter_context(servers.reasoner())
            server = stack.enter_context(servers.running(args.repository, *FLAGS, url))
        failed += _measure_all(bench, [run for run in runs if not run.shared_memory], server)
    shared = [run for run in runs if run.shared_memory]
    if shared and not args.url:
        stages = servers.stages_only(args.repository, args.output / "stages")
        with servers.running(stages, "--allow-stage-calls", "--allow-shared-memory") as server:
            failed += _measure_all(bench, shared, server)
    print(f"report: {write_page(args.output / 'report.html')}")
    for line in failed:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
