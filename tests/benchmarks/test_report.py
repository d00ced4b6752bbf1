# SPDX-License-Identifier: Apache-2.0
"""The numbers in the docs are those of the results files."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_docs_show_the_newest_results(report):
    page = report.DOCS.read_text()
    assert page == report.with_tables(page), "run `python -m benchmarks.report`"


def test_a_recorded_result_names_command_machine_versions_and_commit(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.record("a task", "make bench", report.summary([3.0, 1.0, 2.0]))
    (file,) = tmp_path.iterdir()
    line = json.loads(file.read_text())
    assert (line["n"], line["median_s"], line["min_s"], line["max_s"]) == (3, 2.0, 1.0, 3.0)
    assert line["command"] == "make bench"
    assert line["machine"]["cores"] >= 1
    assert line["versions"]["python"] == sys.version.split()[0]


def test_results_that_are_no_timings_stay_out_of_the_timings(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    report.record("quality.toy", "make quality", {"samples": 3})
    report.record("a task", "make bench", report.summary([1.0]))
    assert "| a task | 1 | 1 |" in report.tables()
    assert "quality.toy" not in report.tables()


def test_the_newest_result_of_a_benchmark_wins(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for seconds in (5.0, 7.0):
        report.record("a task", "make bench", report.summary([seconds]))
    assert "| a task | 1 | 7 |" in report.tables()
    assert "| a task | 1 | 5 |" not in report.tables()


def test_levels_have_a_table_of_their_own(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.levels() == "Not measured yet."
    values = {"samples": 3, "psnr_db": 47.0, "psnr_db_lowest_tenth": 40.25}
    values |= {"latent_cosine": 0.998, "latent_cosine_lowest_tenth": 0.99}
    for name in ("look_exact", "look_fp8", "all_exact", "all_fp8"):
        values |= {name: 0.9, f"{name}_95": [0.8, 1.0]}
    report.record("quality.fp8 text2image", "make quality", values)
    shown = "90% (80% to 100%)"
    expected = f"| text2image | 3 | {shown} | {shown} |  |  | {shown} | {shown} | 47.0 (40.2) | 0.9980 (0.9900) |"
    assert expected in report.levels()
    assert "quality.fp8" not in report.tables()
