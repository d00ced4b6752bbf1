# SPDX-License-Identifier: Apache-2.0
"""A run from the program's call to its result, with a script in perf_analyzer's place."""

from pathlib import Path

import pytest

from benchmarks.serving.bench_sweep import Bench, measure, result_of
from benchmarks.serving.outputs import RunFailedError
from benchmarks.serving.runs import Run
from predict2_spec.presets import TOY

CAPTURED = Path(__file__).parent / "captured"
RUN = Run("text2image", 2, 4)
# Writes what was captured where it is told to: -f CSV --profile-export-file EXPORT.
WRITES = f"""
while [ $# -gt 0 ]; do
  case $1 in
    -f) cp {CAPTURED}/picture.csv "$2";;
    --profile-export-file) [ ! -e "$2" ] || exit 99; cp {CAPTURED}/picture.json "$2";;
  esac
  shift
done
cat {CAPTURED}/picture.txt
"""


@pytest.fixture
def bench(tmp_path):
    """bench(script): a bench whose tool is that script."""

    def make(script):
        tool = tmp_path / "tool"
        tool.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}")
        tool.chmod(0o755)
        return Bench(tool, TOY, frozenset({"text2image"}), tmp_path / "out", run_timeout_s=2)

    return make


def test_a_runs_result_says_what_was_asked_and_what_came_of_it(bench):
    line = result_of(RUN, TOY, measure(bench(WRITES), RUN, "host:1"))
    assert (line["preset"], line["model"], line["way"], line["concurrency"]) == ("toy", "text2image", "gRPC", 2)  # fmt: skip
    assert line["n"] == 4
    assert line["compute_s"] == pytest.approx(0.025298, rel=1e-3)  # of its stages, as printed


def test_a_run_can_be_made_again_over_its_own_files(bench):
    made = bench(WRITES)
    assert measure(made, RUN, "host:1") == measure(made, RUN, "host:1")


def test_a_run_that_hangs_is_made_again(bench):
    once = f"[ -e hung ] || {{ touch hung; exec sleep 60; }}\n{WRITES}"
    assert measure(bench(once), RUN, "host:1").values()["n"] == 4


def test_a_run_that_always_hangs_fails_and_says_what_to_do(bench):
    with pytest.raises(RunFailedError, match="--run-timeout"):
        measure(bench("exec sleep 60"), RUN, "host:1")


def test_a_program_that_fails_is_quoted(bench):
    with pytest.raises(RunFailedError, match="exit code 99: no such model"):
        measure(bench("echo no such model >&2; exit 99"), RUN, "host:1")


def test_a_stage_that_was_never_called_is_explained(bench):
    with pytest.raises(RunFailedError, match="failed before any stage"):
        measure(bench("echo failed to find the requested model version >&2; exit 99"), RUN, "host:1")  # fmt: skip
