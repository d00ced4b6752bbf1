# SPDX-License-Identifier: Apache-2.0
"""Every benchmark of `make gpu` runs here at tiny sizes, so that none fails for the first time on a GPU machine."""

import importlib
import json
import math

import pytest
import torch

from benchmarks import gpu, results
from benchmarks.engines import bench_ceilings, bench_dit, bench_levels, bench_stages
from benchmarks.engines.bench_workloads import measure
from benchmarks.engines.generation import KINDS
from benchmarks.headline import Workload
from benchmarks.kernels.workloads import Workload as OnePass
from predict2_runtime.torch_networks import vae
from predict2_spec.networks import (
    DIT_TOY_TEXT2IMAGE,
    DIT_TOY_VIDEO2WORLD,
    TOY_TEXT_ENCODER,
    TOY_VAE,
)
from predict2_spec.video import LatentShape, VideoShape

torch.set_num_threads(1)  # of tests side by side two would wait for each other
LIKE = torch.empty(())  # float32: a CPU takes longer for less
PICTURE, CLIP = Workload("toy", "text2image", 1.0), Workload("toy", "video2world", 1.0)
PASSES = [
    OnePass("picture", DIT_TOY_TEXT2IMAGE, LatentShape(1, 4, 6)),
    OnePass("clip", DIT_TOY_VIDEO2WORLD, LatentShape(2, 4, 6)),
]
TINY_CLIP = VideoShape(5, 32, 48)


@pytest.fixture(autouse=True)
def recorded(tmp_path, monkeypatch):
    """What was recorded, by its name; in a folder of its own."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)

    def read():
        (path,) = tmp_path.iterdir()
        return {x["benchmark"]: x for x in map(json.loads, path.read_text().splitlines())}

    return read


@pytest.mark.parametrize("name", gpu.KERNELS)
def test_kernels(name, recorded):
    main = importlib.import_module(f"benchmarks.kernels.{name}").main
    if name == "bench_cfg_ab2_step":
        main(TINY_CLIP, device="cpu")
    else:
        main(PASSES, device="cpu")
    for line in recorded().values():
        assert line["median_s"] > 0
        assert line["note"].endswith("GB/s")


@pytest.mark.parametrize(
    ("name", "tiny", "unit"),
    [
        ("copy", {"size": 4096}, "gb_s"),
        ("products", {"sizes": [(DIT_TOY_TEXT2IMAGE, 3)]}, "tflop_s"),
        ("attention", {"sizes": [(2, 8)], "head_dim": 8, "backends": {"torch's choice": None}}, "tflop_s"),
        ("convolutions", {"sizes": [(4, 2, 3, 5)]}, "tflop_s"),
    ],
)  # fmt: skip
def test_ceilings(name, tiny, unit, recorded):
    bench_ceilings.measure(bench_ceilings.CEILINGS[name](LIKE, **tiny), runs=2)
    lines = recorded()
    assert len(lines) == {"products": 8}.get(name, 1)  # four products, in two types
    for title, line in lines.items():
        assert title.startswith("ceiling: ")
        assert line[unit] >= 0


def test_what_a_machine_cannot_do_is_left_out(capfd, tmp_path):
    def fails():
        raise RuntimeError("no such kernel here\nand so on")

    bench_ceilings.measure(iter([bench_ceilings.Case("FP8", 1.0, "tflop_s", fails)]))
    assert "FP8: left out, no such kernel here\n" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", bench_stages.STAGES)
def test_stages(stage, recorded):
    sizes = bench_stages.Sizes(TOY_VAE, TOY_TEXT_ENCODER, (TINY_CLIP,), (TINY_CLIP,))
    bench_stages.measure(stage, sizes, LIKE, runs=2)
    found = recorded()
    engines = {title.partition(", torch ")[2] for title in found}
    assert engines == {"eager", "engine"} | (
        {"engine, recorded"} if stage == "text-encoder" else set()
    )
    assert all(line["stage"] == stage for line in found.values())


def test_no_frames_are_so_small_that_their_chunks_would_be_recorded():
    smallest = min(
        shape.height * shape.width for shape in (*bench_stages.REAL.given, *bench_stages.REAL.made)
    )
    assert smallest > vae._RECORDED_PIXELS


def test_the_denoisers_alone(recorded):
    bench_dit.main([PICTURE], LIKE)
    (line,) = recorded().values()
    assert line["note"].startswith("15 tokens")


@pytest.mark.parametrize("of", [PICTURE, CLIP], ids=lambda of: of.task)
def test_the_level_fp8_is_near_and_not_the_same(of):
    found = bench_levels.measure(of, LIKE)
    assert found["solver_steps"] == 5 == len(found["fp8_cosine_of_steps"])
    assert found["exact_cosine"] == pytest.approx(1, abs=1e-5)
    assert 0.9 < found["fp8_cosine"] < 0.99999


@pytest.mark.parametrize("name", ["eager", "engine", "recorded-fp8"])
@pytest.mark.parametrize("of", [PICTURE, CLIP], ids=lambda of: of.task)
def test_whole_generations(of, name):
    kind = next(kind for kind in KINDS if kind.name == name)
    line = measure(of, kind, LIKE, num_steps=2, whole_limit_s=math.inf)
    assert (line["workload"], line["engine"], line["level"]) == (of.name, name, kind.level)
    assert (line["steps"], line["whole"]) == (3, "run")
    assert all(line[part] > 0 for part in ("text_s", "step_s", "decode_s"))
    assert line["whole_s"] > line["step_s"]
    assert (line["encode_s"] > 0) == (of is CLIP)


def test_what_takes_long_is_the_sum_of_its_parts():
    line = measure(PICTURE, KINDS[0], LIKE, num_steps=2, whole_limit_s=0.0)
    parts = line["text_s"] + line["encode_s"] + 3 * line["step_s"] + line["decode_s"]
    assert line["whole"] == "sum"
    assert line["whole_s"] == pytest.approx(parts, abs=1e-3)  # a picture's condition took no time


def test_the_list_of_sections_names_what_there_is():
    assert tuple(bench_ceilings.CEILINGS) == gpu.CEILINGS
    assert tuple(bench_stages.STAGES) == gpu.STAGES
    assert tuple(kind.name for kind in KINDS) == gpu.KINDS
