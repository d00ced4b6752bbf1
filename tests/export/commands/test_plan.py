# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import pytest

from predict2_export.cli import main


def planned(capsys, *arguments):
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def row(text, *starts):
    """The words of the first line that starts so."""
    return next(
        line.split() for line in text.splitlines() if line.split()[: len(starts)] == [*starts]
    )


def test_tables_tell_sizes_work_memory_and_disk(capsys):
    text = planned(capsys, "2b-720p-16fps", "--task", "video2world")
    assert text.startswith("2b-720p-16fps, video2world, batch 1, on one H200")
    assert row(text, "clip", "93,")[-1] == "84,480"
    assert row(text, "video2world_denoiser", "1,956,413,440")[2:] == [
        "3.91",
        "GB",
        "2.15",
        "GB",
        "3.16",
        "GB",
    ]
    # 1925 TFLOP a pass, 72 passes, at 989 and 1979 TFLOP/s
    assert row(text, "video2world_denoiser", "clip")[2:] == [
        "1,925",
        "3,850",
        "72",
        "138,594",
        "140.1",
        "70.0",
    ]
    assert row(text, "clip", "277.8")[1:4] == ["277.8", "1,637", "10.0"]
    assert row(text, "bf16")[-1] == "fits"
    assert row(text, "fetch:")[2] == "53.56"


def test_tables_are_cut_nowhere_when_piped_from_a_narrow_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    text = planned(capsys, "14b-720p-16fps-sparse")
    assert "…" not in text


def test_what_does_not_fit_is_said(capsys):
    text = planned(capsys, "14b-720p-16fps", "--gpu", "l40s")
    assert row(text, "bf16")[-2:] == ["doesn't", "fit"]


def test_what_is_not_counted_is_said(capsys):
    sentence = "vae_decoder isn't counted anywhere"
    assert sentence in planned(capsys, "0.6b-fast-distilled")
    assert sentence not in planned(capsys, "0.6b")


def test_json_holds_plain_numbers(capsys):
    arguments = ("2b-480p-10fps", "--gpu", "b200", "--aspect-ratio", "1:1", "--num-frames", "5")
    plan = json.loads(planned(capsys, *arguments, "--batch", "2", "--json"))
    assert (plan["task"], plan["batch"], plan["gpu"]["name"]) == ("text2world", 2, "B200")
    assert [size["tokens"] for size in plan["sizes"]] == [4096, 1800]
    assert plan["flops"] == sum(work["flops"] for work in plan["work"])
    assert plan["bf16_seconds"] == pytest.approx(sum(w["bf16_seconds"] for w in plan["work"]))
    assert plan["memory"]["bf16_fits"] is True


def test_a_mistake_is_answered_with_what_there_is(capsys):
    assert main(["plan", "3b"]) == 1
    assert "preset '3b' is unknown; choose one of toy, 0.6b" in capsys.readouterr().err


def test_planning_loads_no_torch():
    code = (
        "import sys; from predict2_export.commands import plan; import predict2_export.plan; "
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_traffic_is_planned_from_floors_and_says_so(capsys, tmp_path):
    drawn = tmp_path / "wait.svg"
    words = ["2b-720p-16fps", "--traffic", "video2world=30", "--price", "4", "--plot", str(drawn)]
    text = planned(capsys, *words)
    assert "from floors, nothing is measured" in text
    assert row(text, "video2world", "30")[3:] == ["floor", "of", "H200,", "no", "measurement"]
    chosen = next(line.split() for line in text.splitlines() if line.strip().endswith("<"))
    assert float(chosen[-2]) == 4 * int(chosen[0])
    assert drawn.read_text().startswith("<svg")


def test_a_traffic_is_planned_from_results(capsys, tmp_path):
    results = tmp_path / "h200.jsonl"
    line = {"workload": "2b-720p-16fps-video2world", "whole_s": 200.0, "ours": True, "level": "exact",
            "date": "2026-01-02", "machine": {"gpu": "NVIDIA H200"}}  # fmt: skip
    results.write_text(json.dumps(line) + "\n")
    words = ["2b-720p-16fps", "--traffic", "video2world=36", "--results", str(results), "--json"]
    found = json.loads(planned(capsys, *words))
    assert found["basis"] == "from measured seconds"
    assert found["busy_gpus"] == 2.0
    assert found["chosen"]["gpus"] > 2


def test_results_that_are_none_are_refused(capsys, tmp_path):
    words = ["plan", "2b-720p-16fps", "--traffic", "video2world=36", "--results"]
    assert main([*words, str(tmp_path / "none")]) == 1
    assert "none can't be read" in capsys.readouterr().err
