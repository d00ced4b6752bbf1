# SPDX-License-Identifier: Apache-2.0
import re
from xml.etree import ElementTree

import pytest

from benchmarks import results
from benchmarks.serving import page
from benchmarks.serving.charts import Bar, curves, stacked
from benchmarks.serving.overhead_table import overhead

LINE = {
    "preset": "toy", "model": "text2image", "way": "gRPC", "concurrency": 1, "n": 24, "p50_s": 0.17,
    "p95_s": 0.2, "max_s": 0.3, "throughput": 5.5, "queue_s": 0.001, "compute_s": 0.15, "around_s": 0.019,
}  # fmt: skip
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def nothing_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)


def put(name, **changed):
    results.record(name, "make bench", {**LINE, **changed})


def test_the_table_says_what_was_run_and_in_milliseconds():
    put("serving a")
    row = "| text2image | gRPC | 1 | 24 | 170 | 200 |  | 5.5 | 1 | 150 | 19 |"
    assert row in page.table()


def test_without_enough_requests_the_table_says_maximum():
    line = {key: value for key, value in LINE.items() if key != "p95_s"}
    assert page.cells(line)[5] == "300 (max)"


def test_parts_side_by_side_have_no_rest():
    assert page.cells({**LINE, "around_s": -0.7})[-1] == ""


def test_the_newest_run_wins_and_other_results_stay_out():
    put("serving a")
    put("serving a", throughput=7.0)
    results.record("a task", "make bench", results.summary([1.0]))
    assert page.table().count("| text2image |") == 1
    assert "| 7 |" in page.table()
    assert "a task" not in page.table()


def test_without_runs_the_table_says_so():
    assert page.table() == "Not measured yet."
    assert overhead() == "Not measured yet."


def test_the_page_needs_nothing_beside_it():
    put("serving a")
    put("serving b", concurrency=4, model="text2image")
    put("serving <c>", model="<c>")
    text = page.html()
    assert "<svg" in text
    assert "<script" not in text
    assert not re.findall(r"(?:src|href)=", text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "<td><c></td>" not in text
    assert "<td>&lt;c&gt;</td>" in text


def test_curves_go_up_with_their_values():
    svg = ElementTree.fromstring(curves("a <b>", "ms", {"p50": {1: 10.0, 2: 20.0, 4: 20.0}}))
    spots = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle")]
    assert spots[0][0] < spots[1][0] < spots[2][0]
    assert spots[0][1] > spots[1][1] == spots[2][1]


def test_bars_are_as_long_as_their_parts():
    rows = [Bar("a", (1.0, 3.0)), Bar("b", (2.0, 0.0))]
    svg = ElementTree.fromstring(stacked("t", "%", ("x", "y"), rows))
    bars = [r for r in svg.iter(f"{SVG}rect") if r.get("height") == "16"]
    widths = [float(r.get("width")) for r in bars]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[3] == 0
    assert float(bars[1].get("x")) == pytest.approx(float(bars[0].get("x")) + widths[0], abs=0.2)


def test_overhead_is_shown_beside_what_it_was_measured_against():
    results.record(
        "overhead text2image, toy",
        "make bench",
        {"n": 20, "calls": 39, "served_s": 0.17, "in_process_s": 0.15, "overhead_s": 0.02, "share": 0.1176},
    )  # fmt: skip
    trip = {"n": 36, "trip": "93 frames of 768 x 432", "trip_s": 0.016, "trip_min_s": 0.01, "bytes": 36_000_000}  # fmt: skip
    results.record("overhead of a call, 93 frames of 768 x 432", "make bench", trip)
    results.record(
        "overhead calculated, 2b",
        "make bench",
        {"workload": "2b", "calls": 41, "bytes": 2_000_000_000, "calculated_s": 0.8, "published_s": 50.2, "share": 0.0159},
    )  # fmt: skip
    text = overhead()
    assert "| text2image, toy | 20 | 39 | 170 | 150 | 20 | 11.8 % |" in text
    assert "| 93 frames of 768 x 432 | 36 | 36 | 16 | 10 |" in text
    assert "| 2b | 41 | 2000 | 0.8 | 50.2 | 1.59 % |" in text
