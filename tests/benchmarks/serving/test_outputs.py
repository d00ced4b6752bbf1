# SPDX-License-Identifier: Apache-2.0
"""perf_analyzer's output as it wrote it, of 2.60.0; media in the exports cut to their first bytes."""

import json
from pathlib import Path

import pytest

from benchmarks.serving.outputs import (
    Export,
    Measured,
    RunFailedError,
    Split,
    quantile,
    read_csv,
    read_export,
    read_stages,
)

CAPTURED = Path(__file__).parent / "captured"


def captured(name):
    return (CAPTURED / name).read_text()


def test_latencies_are_those_that_perf_analyzer_prints():
    export = read_export(captured("picture.json"))
    assert len(export.seconds) == 4
    # its own rounding is to microseconds
    assert max(export.seconds) == pytest.approx(66644e-6, abs=1e-6)
    assert sum(export.seconds) / 4 == pytest.approx(47339e-6, rel=0.01)  # Avg gRPC time
    assert export.first == export.seconds


def test_a_stream_takes_until_its_last_response_and_its_first_is_kept_too():
    export = read_export(captured("stream.json"))
    requests = json.loads(captured("stream.json"))["experiments"][0]["requests"]
    times = [(r["timestamp"], *r["response_timestamps"]) for r in requests]
    assert len(times[0]) > 5
    assert export.seconds == pytest.approx([(t[-1] - t[0]) / 1e9 for t in times])
    assert export.first == pytest.approx([(t[1] - t[0]) / 1e9 for t in times])
    assert export.span == pytest.approx((times[-1][-1] - times[0][0]) / 1e9)


def test_a_streams_error_which_perf_analyzer_counts_as_a_success_fails_the_run():
    with pytest.raises(RunFailedError, match="guardrail blocklist refuses"):
        read_export(captured("refused.json"))


def test_a_run_without_answers_fails():
    experiment = {"requests": [{"timestamp": 1, "response_timestamps": []}]}
    with pytest.raises(RunFailedError, match="no request"):
        read_export(json.dumps({"experiments": [experiment]}))


def test_the_split_is_the_csvs_in_seconds():
    names, values = (line.split(",") for line in captured("picture.csv").split("\n")[:2])
    row = dict(zip(names, map(float, values), strict=True))
    split = read_csv(captured("picture.csv"))
    assert split.queue == pytest.approx(row["Server Queue"] / 1e6)
    compute = sum(row[f"Server Compute {part}"] for part in ("Input", "Infer", "Output"))
    assert split.compute == pytest.approx(compute / 1e6)


def test_stages_have_all_their_calls_of_a_request():
    stages = read_stages(captured("picture.txt"))
    assert set(stages) == {"guardrail_text", "text_encoder", "text2image_denoiser", "vae_decoder"}
    # printed: 12 calls of 4 requests; queue 2168, compute input 40, infer 5134, output 136 usec each
    assert stages["text2image_denoiser"].queue == pytest.approx(3 * 2168e-6)
    assert stages["text2image_denoiser"].compute == pytest.approx(3 * (40 + 5134 + 136) * 1e-6)
    assert stages["guardrail_text"].compute == pytest.approx((22 + 2054 + 245) * 1e-6)


def test_a_model_that_calls_none_has_no_stages():
    head, _ = captured("picture.txt").split("Composing models:")
    assert read_stages(head) == {}


def test_what_is_neither_waiting_nor_computing_is_around_it():
    export = Export((0.2, 0.4), (0.1, 0.1), 0.5)
    stages = {"a": Split(0.02, 0.1), "b": Split(0.0, 0.05)}
    values = Measured(export, Split(0.01, 0.29), stages).values()
    assert values["queue_s"] == pytest.approx(0.03)
    assert values["compute_s"] == pytest.approx(0.15)
    assert values["around_s"] == pytest.approx(0.3 - 0.18)
    assert values["throughput"] == pytest.approx(4.0)
    assert values["first_s"] == pytest.approx(0.1)
    assert Measured(export, Split(0.01, 0.29), {}).values()["compute_s"] == pytest.approx(0.29)


@pytest.mark.parametrize(("count", "has"), [(19, False), (20, True)])
def test_a_95th_percentile_needs_twenty_requests(count, has):
    export = Export((0.1,) * count, (0.1,) * count, 1.0)
    values = Measured(export, Split(0, 0), {}).values()
    assert ("p95_s" in values) == has
    assert values["n"] == count
    assert values["max_s"] == 0.1
    assert "first_s" not in values  # one response is no stream


def test_a_quantile_is_a_value_that_was_measured():
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert quantile(values, 0.5) == 3.0
    assert quantile(values, 0.95) == 5.0
    assert quantile(list(range(1, 21)), 0.95) == 19
    assert quantile([7.0], 0.5) == 7.0
