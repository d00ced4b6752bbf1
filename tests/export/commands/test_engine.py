# SPDX-License-Identifier: Apache-2.0
"""`predict2-export engine` as people use it, with TensorRT-RTX, whose builder needs no GPU."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from predict2_export import cli
from predict2_export.installation import digest
from predict2_export.toy import write_toy_checkpoint
from predict2_runtime.engines import read_manifest
from predict2_runtime.engines.bindings import bindings
from predict2_runtime.repository import read_preset
from predict2_spec.manifest import Range
from predict2_spec.presets import TOY
from predict2_spec.tensors import served_stages

STAGES = [stage.name for stage in served_stages(TOY)]
STAGE = "text_encoder"


@pytest.fixture
def run(capsys):
    """Runs the command in this process; its exit code and all that it said."""

    def main(*argv):
        code = cli.main(["engine", *map(str, argv)])
        return code, "".join(capsys.readouterr())

    return main


def manifest(repository, stage=STAGE):
    return read_manifest(repository / stage / "1")


@pytest.fixture
def own_plans(toy_plans, tmp_path):
    """A copy of the stage's plans, and how to call the command for it."""
    repository = tmp_path / "served" / "toy"
    shutil.copytree(toy_plans.repository / STAGE, repository / STAGE)
    argv = [*toy_plans.argv[1:], "--only", STAGE]
    argv[argv.index("--output") + 1] = repository
    argv[argv.index("--keep-onnx") + 1] = tmp_path / "onnx"
    return repository, argv


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_plans_and_a_manifest_that_describes_them(toy_plans, stage):
    folder = toy_plans.repository / stage
    found = manifest(toy_plans.repository, stage)
    assert (found.network, found.preset, found.kind) == (stage, "toy", "tensorrt_rtx")
    assert found.device == "sm89+sm120"
    assert found.precision == ("fp32" if stage == "guardrail_video" else "bf16")
    assert found.versions["tensorrt_rtx"] == bindings("tensorrt_rtx").__version__
    assert (found.plugins, found.plugins_inside, found.weights) == ({}, False, "fixed")
    for graph in found.graphs.values():
        path = folder / "1" / graph.file
        assert (path.stat().st_size, digest([path])) == (graph.size_bytes, graph.sha256)
        assert graph.profile.keys() == graph.inputs.keys()
        assert not graph.data_file
    assert (folder / "config.pbtxt").is_file()
    assert (folder / "1" / "model.py").is_file()


def test_nothing_but_what_is_served_is_installed(toy_plans):
    files = {path.name for path in (toy_plans.repository / STAGE / "1").iterdir()}
    assert files - {"__pycache__"} == {"main.plan", "manifest.json", "model.py", "tokenizer.json"}
    assert read_preset(toy_plans.repository) == TOY
    hidden = [p.name for p in toy_plans.repository.parent.iterdir() if p.name.endswith(".part")]
    assert not hidden


def test_a_plan_isnt_verified_where_it_is_built_and_the_command_says_where_to(toy_plans):
    assert not manifest(toy_plans.repository).verification
    assert f"predict2-export verify {toy_plans.repository} --checkpoints" in toy_plans.said


def test_the_command_that_compares_can_be_typed_as_it_is_said(tmp_path, run):
    pytest.importorskip("tensorrt_rtx_bindings", reason="it builds the plan")
    checkpoints = tmp_path / "my toy's files"
    write_toy_checkpoint(checkpoints)
    code, said = run(
        "--flavour", "tensorrt_rtx", "--gpu-arch", "sm120", "--only", STAGE,
        "--checkpoints", checkpoints, "--output", tmp_path / "die Bälle",
    )  # fmt: skip
    assert code == 0, said
    command = shlex.split(said[said.index("predict2-export verify") :])
    assert command[2:] == [str(tmp_path / "die Bälle"), "--checkpoints", str(checkpoints), "--only", STAGE]  # fmt: skip


def test_a_second_run_keeps_all_plans_and_does_no_work(toy_plans, run):
    plans = {p: p.stat().st_mtime_ns for p in toy_plans.repository.glob("*/1/*.plan")}
    code, said = run(*toy_plans.argv[1:])
    assert code == 0, said
    assert said.count("already built from this checkpoint, kept") == len(STAGES)
    assert "lowering" not in said
    assert plans == {p: p.stat().st_mtime_ns for p in toy_plans.repository.glob("*/1/*.plan")}


def test_a_verification_outlives_a_run_that_keeps_the_plan(own_plans, run):
    repository, argv = own_plans
    path = repository / STAGE / "1" / "manifest.json"
    values = json.loads(path.read_text())
    values["verification"] = {
        "main": {"cosine": 1.0, "min_cosine": 0.9, "max_error": 0.0, "max_error_limit": 0.1}
    }
    path.write_text(json.dumps(values))
    code, said = run(*argv)
    assert (code, "kept" in said) == (0, True), said
    assert manifest(repository).verification["main"].cosine == 1.0


def test_onnx_files_can_be_had_after_the_plans_are_built(own_plans, run):
    repository, argv = own_plans
    before = manifest(repository)
    onnx = argv[argv.index("--keep-onnx") + 1]
    code, said = run(*argv)
    assert (code, "kept" in said, "building" in said) == (0, True, False), said
    names = [f"{STAGE}.main.onnx", f"{STAGE}.main.onnx.data"]
    assert sorted(path.name for path in onnx.iterdir()) == names
    assert manifest(repository) == before
    code, said = run(*argv)
    assert (code, "lowering" in said) == (0, False), said


def test_plans_of_another_preset_arent_kept_as_they_are_for_other_sizes(own_plans, run):
    repository, argv = own_plans
    path = repository / STAGE / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"preset": "toy"', '"preset": "2b-480p-16fps"'))
    code, said = run(*argv)
    assert (code, "building main" in said) == (0, True), said
    assert manifest(repository).preset == "toy"


def test_other_choices_make_other_plans(own_plans, run):
    repository, argv = own_plans
    before = manifest(repository)
    code, said = run(*argv, "--dtype", "float32", "--cuda-graphs", "2")
    assert (code, "lowering" in said) == (0, True), said
    after = manifest(repository)
    assert (after.precision, after.cuda_graphs) == ("fp32", 2)
    assert after.graphs["main"].outputs == {
        "prompt_embeds": before.graphs["main"].outputs["prompt_embeds"].replace("BFLOAT16", "FLOAT")
    }
    assert after.graphs["main"].sha256 != before.graphs["main"].sha256
    assert after.recipe != before.recipe


def test_more_shapes_to_record_need_no_other_plan(own_plans, run):
    repository, argv = own_plans
    run(*argv, "--cuda-graphs", "1")
    one = manifest(repository)
    code, said = run(*argv, "--cuda-graphs", "3")
    assert (code, "building" in said) == (0, False), said
    assert manifest(repository) == replace(one, cuda_graphs=3)
    code, said = run(*argv)  # memory may be allocated while such a plan runs
    assert (code, "building" in said) == (0, True), said


def test_a_plan_cut_short_is_built_again(own_plans, run):
    repository, argv = own_plans
    plan = repository / STAGE / "1" / "main.plan"
    plan.write_bytes(plan.read_bytes()[:-1])
    code, said = run(*argv)
    assert (code, "building main for sm89+sm120" in said) == (0, True), said
    assert plan.stat().st_size == manifest(repository).graphs["main"].size_bytes


def test_random_weights_need_no_checkpoint_and_arent_verified(tmp_path, run):
    pytest.importorskip("tensorrt_rtx_bindings", reason="it builds the plan")
    output = tmp_path / "served" / "random"
    code, said = run(
        "--flavour", "tensorrt_rtx", "--gpu-arch", "sm120", "--random-weights", "--only", STAGE,
        "--checkpoints", tmp_path / "none", "--output", output, "--log", tmp_path / "log",
    )  # fmt: skip
    assert code == 0, said
    assert "--random-weights" in said.splitlines()[-1]
    assert "Int64 binding" in (tmp_path / "log").read_text()  # which TensorRT warns of
    assert manifest(output).device == "sm120"
    assert manifest(output).graphs["main"].profile["input_ids"] == Range((1, 32), (2, 32), (16, 32))


def test_missing_files_are_named_before_anything_is_built(tmp_path, run):
    pytest.importorskip("tensorrt_rtx_bindings", reason="it would build the plans")
    code, said = run(
        "--flavour", "tensorrt_rtx", "--gpu-arch", "sm120", "--checkpoints", tmp_path,
        "--output", tmp_path / "toy",
    )  # fmt: skip
    assert code == 1
    assert "preset toy needs" in said
    assert not (tmp_path / "toy").exists()


@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed here")
def test_a_machine_without_tensorrt_is_told_what_to_install(tmp_path, run):
    code, said = run("--checkpoints", tmp_path, "--output", tmp_path / "toy")
    assert code == 1
    assert said.startswith("predict2-export: tensorrt can't be used here")
    assert "pip install tensorrt" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--gpu-arch", "sm90"), "sm90 was given; tensorrt_rtx"),
        (("--plugins", "load"), "tensorrt_rtx has no plugins"),
        (("--timing-cache", "x"), "tensorrt_rtx has no timing cache"),
        (("--refit",), "one GPU at a time"),
        *[
            (("--workspace", size), f"--workspace {size} must be more than 0 and at most")
            for size in ("0", "-1", "nan", "inf", "1e-30", "1e+30")
        ],
        (("--cuda-graphs", "-1"), "--cuda-graphs -1 must be 0 or more"),
        (("--random-weights", "--lora", "x"), "drop one or the other"),
        (("--lora-alpha", "4"), "--lora-alpha says how much of a --lora to take"),
        (("--lora-alpha", "nan", "--lora", "x"), "--lora-alpha nan must be a number"),
        (("--preset", "0.6b", "--only", "video2world_denoiser"), "preset 0.6b has no video2world"),
        (("--keep-onnx", __file__), "is a file; name a folder"),
        (("--level", "fp8", "--gpu-arch", "sm86", "sm89"), "needs GPUs from sm89 on, not sm86"),
        (("--timing-cache", Path(__file__).parent), "is a folder; name a file in it"),
        (("--skip-guardrail-video", "--only", "guardrail_video"), "leave nothing to build"),
    ],
)
def test_flags_that_cant_be_met_are_refused_in_one_line(tmp_path, flags, said, run):
    pytest.importorskip("tensorrt_rtx_bindings", reason="they are of its flavour")
    base = ("--flavour", "tensorrt_rtx", "--checkpoints", tmp_path, "--output", tmp_path / "toy")
    gpus = () if "--gpu-arch" in flags else ("--gpu-arch", "sm89", "sm120")
    code, text = run(*base, *gpus, *flags)
    assert (code, text.count("\n")) == (1, 1)
    assert said in text
    assert not (tmp_path / "toy").exists()


def test_ctrl_c_while_tensorrt_works_leaves_nothing(tmp_path):
    pytest.importorskip("tensorrt_rtx_bindings", reason="it builds the plan")
    write_toy_checkpoint(tmp_path / "checkpoints")
    output, log = tmp_path / "served" / "toy", tmp_path / "said"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "predict2_export.cli", "engine",
                "--flavour", "tensorrt_rtx", "--gpu-arch", "sm89", "sm120", "--only", "vae_encoder",
                "--checkpoints", tmp_path / "checkpoints", "--output", output,
            ],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for(log, "building first", process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    said = log.read_text()
    assert said.endswith("predict2-export: stopped; run it again to go on\n")
    assert "first is built" not in said
    assert "Traceback" not in said
    assert not list(output.iterdir())
    assert [p.name for p in output.parent.iterdir() if p != output and p.suffix != ".log"] == []


def wait_for(log: Path, text, process):
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
