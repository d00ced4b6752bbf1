# SPDX-License-Identifier: Apache-2.0
"""perf_analyzer itself against live servers of the toy that `make serve` or `make bench` built."""

from pathlib import Path

import pytest

from benchmarks.serving import perf_analyzer, servers
from benchmarks.serving.bench_sweep import Bench, measure
from benchmarks.serving.inputs import write_inputs
from benchmarks.serving.runs import Run
from predict2_spec.presets import TOY

pytestmark = [pytest.mark.server, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[3] / "build" / "served" / "toy"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Everything that a run needs, with inputs for those below."""
    if not REPOSITORY.is_dir():
        pytest.skip("the toy isn't built; make bench builds it")
    try:
        tool = perf_analyzer.find()
    except perf_analyzer.ToolError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("bench")
    write_inputs(TOY, {"text2image", "generate-text2image", "text2image_denoiser"}, folder / "inputs")  # fmt: skip
    served = frozenset(path.parent.name for path in REPOSITORY.glob("*/config.pbtxt"))
    return Bench(tool, TOY, served, folder)


@pytest.fixture(scope="module")
def url(bench):
    with servers.running(REPOSITORY) as server:
        yield server.grpc


def test_a_unary_run_has_latencies_and_what_its_stages_took(bench, url):
    measured = measure(bench, Run("text2image", 2, 4), url)
    values = measured.values()
    assert values["n"] == 4
    assert set(measured.stages) == {"guardrail_text", "text_encoder", "text2image_denoiser", "vae_decoder"}  # fmt: skip
    assert 0 < values["compute_s"] < values["max_s"]


def test_a_stream_is_measured_to_its_end(bench, url):
    values = measure(bench, Run("generate-text2image", 1, 2), url).values()
    assert values["first_s"] < values["p50_s"]


def test_a_stage_is_measured_through_shared_memory(bench, tmp_path):
    stages = servers.stages_only(REPOSITORY, tmp_path / "stages")
    with servers.running(stages, "--allow-stage-calls", "--allow-shared-memory") as server:
        run = Run("text2image_denoiser", 1, 8, shared_memory=True)
        assert measure(bench, run, server.grpc).values()["n"] == 8
