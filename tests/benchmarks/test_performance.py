# SPDX-License-Identifier: Apache-2.0
"""The page of whole generations, made of results that are made up."""

import json
from xml.etree import ElementTree

import pytest

from benchmarks import performance, report, results
from benchmarks.plots import Bar, bars

GPU = {"gpu": "A GPU", "max_sm_clock": "1980 MHz"}
COMMON = {
    "command": "make gpu", "machine": GPU, "versions": {"torch": "2.11"}, "commit": "abc", "date": "2026-11-21",
}  # fmt: skip


def generation(engine, whole_s, *, ours=True, level="exact", workload="2b-480p-16fps-text2image", **other):  # fmt: skip
    return {
        "benchmark": f"generation {workload}, {engine}",
        "workload": workload, "engine": engine, "title": f"by {engine}", "ours": ours, "level": level,
        "steps": 36, "text_s": 0.02, "encode_s": 0.0, "step_s": 0.05, "decode_s": 0.03,
        "whole_s": whole_s, "whole": "run", "peak_bytes": 21_000_000_000,
        "clocks": {"sm_mhz": 1700.0}, **other, **COMMON,
    }  # fmt: skip


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)

    def write(*lines, name="a-gpu"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))

    return write


def test_without_results_it_says_so_and_shows_what_is_known_all_the_same(write):
    write({"benchmark": "a task", "median_s": 1.0})
    for section in (performance.generations, performance.stages, performance.distance):
        assert section() == "Nothing has been measured on a GPU yet."
    assert performance.plots() == {}
    row = "| 2b-480p-16fps-text2image | 4,080 | 9.02 s | 1.63 s | 0.917 s | 2.3 s | 1.6 s |"
    assert row in performance.goals()


def test_the_table_has_the_quickest_of_baselines_and_of_each_level(write):
    write(
        generation("eager", 7.0, ours=False),
        generation("compiled", 5.25, ours=False),
        generation("engine", 3.0),
        generation("recorded", 2.5),
        generation("recorded-fp8", 1.75, level="fp8"),
    )
    row = "| 2b-480p-16fps-text2image | 9.02 s | 5.25 s | 2.5 s | 1.75 s | 1.63 s |  |"
    found = performance.generations()
    assert row in found.splitlines()
    assert "14b" not in found  # what wasn't measured has no row
    assert (
        "| 2b-480p-16fps-text2image | by engine | 0.02 | 0 | 0.05 | 0.03 | 3 | 21.0 | 1700.0 | abc |"
        in found.splitlines()
    )


def test_a_sum_of_parts_is_told_from_a_run_and_what_is_missing_stays_empty(write):
    write(generation("engine", 200.4, workload="2b-720p-16fps-video2world", whole="sum"))
    row = "| 2b-720p-16fps-video2world | 221.7 s |  | 200 s (sum) |  | 175 s |  |"
    assert row in performance.generations().splitlines()


def test_a_newer_result_takes_the_place_of_an_older_one(write):
    write(generation("engine", 3.0), generation("engine", 4.0))
    assert "| 4 s |" in performance.generations()
    assert "| 3 s |" not in performance.generations()


def test_each_machine_has_a_part_of_its_own(write):
    write(generation("engine", 3.0))
    write(generation("engine", 4.0) | {"machine": {"gpu": "B"}}, name="b")
    assert performance.generations().index("### A GPU") < performance.generations().index("### B")
    assert len(performance.plots()) == 2


def test_a_plot_is_xml_with_a_bar_for_each_row(write):
    write(generation("eager", 7.0, ours=False), generation("engine", 3.5))
    ((name, plot),) = performance.plots().items()
    assert name == "a-gpu-2b-480p-16fps-text2image.svg"
    found = [e for e in ElementTree.fromstring(plot).iter() if e.get("class") == "bar"]
    widths = [float(e.get("width")) for e in found]
    assert len(widths) == 4  # published, two engines, floor
    assert widths[1] == pytest.approx(2 * widths[2], abs=0.2)  # a tenth of a pixel each
    assert f"plots/{name}" in performance.generations()
    assert len(plot) < 4000


def test_plots_take_any_label_and_no_rows():
    plot = bars("<&>", "s", [Bar('"<&>', 0.0, "#000000")])
    texts = [e.text for e in ElementTree.fromstring(plot).iter() if e.tag.endswith("text")]
    assert texts == ["<&>", '"<&>', "0 s"]
    ElementTree.fromstring(bars("nothing", "s", []))


def test_stages_and_distances_have_tables(write):
    write(
        {"benchmark": "vae_decoder, torch engine", "stage": "vae-decoder", "median_s": 1.5, "note": "717 TFLOP"},
        {"benchmark": "level.fp8 a", "workload": "a", "solver_steps": 5, "exact_cosine": 0.99999, "fp8_cosine": 0.998},
    )  # fmt: skip
    assert "| vae_decoder, torch engine | 1.5 | 717 TFLOP |" in performance.stages()
    assert "| a | a-gpu | 5 | 0.99999 | 0.99800 |" in performance.distance()


def test_pages_and_plots_are_written(write, tmp_path):
    write(generation("engine", 3.0))
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in report.PAGES:
        (docs / name).write_text((report.DOCS / name).read_text())
    report.write(docs)
    assert "### A GPU" in (docs / "performance.md").read_text()
    (plot,) = (docs / performance.PLOTS).iterdir()
    assert plot.read_text().startswith("<svg")
