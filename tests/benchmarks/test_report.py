# SPDX-License-Identifier: Apache-2.0
"""The numbers in the docs are those of the results files."""

import json
import sys

import pytest

from benchmarks import report, results


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", report.PAGES)
def test_the_docs_show_the_newest_results(page):
    text = (report.DOCS / page).read_text()
    assert text == report.with_tables(text, report.PAGES[page]), "run `make report`"


def test_the_plots_are_those_of_the_newest_results():
    there = (report.DOCS / report.performance.PLOTS).glob("*.svg")
    assert {path.name: path.read_text() for path in there} == report.performance.plots()


def test_a_recorded_result_names_command_machine_versions_and_commit(folder):
    results.record("a task", "make bench", results.summary([3.0, 1.0, 2.0]))
    (file,) = folder.iterdir()
    line = json.loads(file.read_text())
    assert (line["n"], line["median_s"], line["min_s"], line["max_s"]) == (3, 2.0, 1.0, 3.0)
    assert line["command"] == "make bench"
    assert line["machine"]["cores"] >= 1
    assert line["versions"]["python"] == sys.version.split()[0]


def test_the_commit_is_known_without_git_if_it_is_told(monkeypatch):
    assert len(results.commit()) == 12
    monkeypatch.setenv("PATH", "")
    assert results.commit() == ""
    monkeypatch.setenv("PREDICT2_COMMIT", "0123456789ab")
    assert results.commit() == "0123456789ab"


def test_results_that_are_no_timings_stay_out_of_the_timings(folder):
    results.record("quality.toy", "make quality", {"samples": 3})
    results.record("a task", "make bench", results.summary([1.0]))
    assert "| a task | 1 | 1 |" in report.tables()
    assert "quality.toy" not in report.tables()


def test_the_newest_result_of_a_benchmark_wins(folder):
    for seconds in (5.0, 7.0):
        results.record("a task", "make bench", results.summary([seconds]))
    assert "| a task | 1 | 7 |" in report.tables()
    assert "| a task | 1 | 5 |" not in report.tables()


def test_levels_have_a_table_of_their_own(folder):
    assert report.levels() == "Not measured yet."
    values = {"samples": 3, "psnr_db": 47.0, "psnr_db_lowest_tenth": 40.25}
    values |= {"latent_cosine": 0.998, "latent_cosine_lowest_tenth": 0.99}
    for name in ("look_exact", "look_fp8", "all_exact", "all_fp8"):
        values |= {name: 0.9, f"{name}_95": [0.8, 1.0]}
    results.record("quality.fp8 text2image", "make quality", values)
    results.record("quality.fp8-torch text2image", "make quality", values | {"samples": 2})
    shown = "90% (80% to 100%)"
    rest = f"{shown} | {shown} |  |  | {shown} | {shown} | 47.0 (40.2) | 0.9980 (0.9900) |"
    assert f"| ONNX Runtime | text2image | 3 | {rest}" in report.levels()
    assert f"| torch | text2image | 2 | {rest}" in report.levels()
    assert "quality.fp8" not in report.tables()
