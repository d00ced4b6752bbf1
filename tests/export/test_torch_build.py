# SPDX-License-Identifier: Apache-2.0
"""Building stages as engines of torch, by the command that people use."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from predict2_export import torch_build
from predict2_export.checkpoint.names import dit_state_dict
from predict2_export.cli import main
from predict2_export.to_torch import FILE
from predict2_export.toy import TRAINED
from predict2_runtime.engines import read_manifest
from predict2_spec.presets import TOY

STAGE = "text2image_denoiser"


def build(output, *flags, checkpoints=TRAINED, only=STAGE):
    """The command's exit code."""
    argv = ["build", "--kind", "torch", "--only", only]
    return main([*argv, "--checkpoints", str(checkpoints), "--output", str(output), *flags])


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "toy"
    assert build(output) == 0
    return output


def test_the_engine_is_compared_with_the_module_before_it_is_there(repository):
    manifest = read_manifest(repository / STAGE / "1")
    assert (manifest.kind, manifest.precision, manifest.device) == ("torch", "fp32", "cpu")
    record = manifest.verification["main"]
    assert record.cosine >= record.min_cosine == 0.99999
    assert record.max_error <= record.max_error_limit == 1e-3


def test_the_file_has_the_checkpoints_weights_under_the_modules_names(repository):
    written = load_file(repository / STAGE / "1" / FILE)
    expected = dit_state_dict(load_file(TRAINED / TOY.text2image_path))
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor.float())


def test_bfloat16_is_held_against_what_the_type_alone_costs(tmp_path):
    output = tmp_path / "toy"
    assert build(output, "--dtype", "bfloat16") == 0
    folder = output / STAGE / "1"
    manifest = read_manifest(folder)
    assert manifest.precision == "bf16"
    assert {t.dtype for t in load_file(folder / FILE).values()} == {torch.bfloat16}
    record = manifest.verification["main"]
    (rounded,) = record.beside.values()
    assert record.max_error_limit == pytest.approx(2 * rounded[1])
    assert 0 < record.max_error <= record.max_error_limit


def test_a_second_build_keeps_what_is_there_and_another_type_is_another_engine(
    repository, tmp_path, capsys
):
    served = tmp_path / "toy"
    shutil.copytree(repository, served)
    assert build(served) == 0
    assert "already built" in capsys.readouterr().out
    assert build(served, "--dtype", "bfloat16") == 0
    assert "already built" not in capsys.readouterr().out
    assert read_manifest(served / STAGE / "1").precision == "bf16"


def test_other_weights_are_another_engine(repository, tmp_path, capsys):
    served, changed = tmp_path / "toy", tmp_path / "checkpoints"
    shutil.copytree(repository, served)
    shutil.copytree(TRAINED, changed)
    path = changed / TOY.text2image_path
    save_file({name: value * 1.01 for name, value in load_file(path).items()}, path)
    assert build(served, checkpoints=changed) == 0
    assert "already built" not in capsys.readouterr().out


def test_an_engine_that_disagrees_is_not_installed(tmp_path, monkeypatch, capsys):
    # A writer that loses something, of one layer of many.
    def sloppy(weights, path, dtype):
        write(weights, path, dtype)
        tensors = load_file(path)
        tensors["blocks.2.mlp.layer1.weight"] *= 1.5
        save_file(tensors, path)

    write = torch_build.write_safetensors
    monkeypatch.setattr(torch_build, "write_safetensors", sloppy)
    output = tmp_path / "served" / "toy"
    assert build(output) != 0
    assert "text2image_denoiser/main: the engine's cosine" in capsys.readouterr().err
    assert not (output / STAGE).exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cuda-graphs", "2"), "needs a GPU; add --device cuda"),
        (("--cuda-graphs", "-1"), "must be 0 or more"),
        (
            ("--level", "fp8", "--calibration", "x.json"),
            "--kind torch finds scales while it computes",
        ),
        (("--fp8-layers", "mlp.*"), "these are of --level fp8"),
        (("--level", "fp8", "--fp8-layers", "embed*"), "no layer that may be in FP8"),
    ],
)
def test_flags_that_make_no_sense_are_refused_before_any_work(tmp_path, capsys, flags, message):
    assert build(tmp_path / "toy", *flags) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "toy").exists()


def test_torchs_flags_are_refused_for_onnxruntime(tmp_path, capsys):
    argv = ["build", "--dtype", "bfloat16", "--output", str(tmp_path / "toy")]
    assert main(argv) != 0
    assert "are of --kind torch" in capsys.readouterr().err


def test_the_level_fp8_needs_no_calibration_and_can_be_verified_again(tmp_path, capsys):
    output = tmp_path / "toy"
    assert build(output, "--level", "fp8") == 0
    folder = output / STAGE / "1"
    written = load_file(folder / FILE)
    coded = {
        n.removesuffix(".weight") for n, t in written.items() if t.dtype == torch.float8_e4m3fn
    }
    assert len(coded) == 4 * 10  # of the toy's six blocks all but the first and the last
    assert {f"{name}.weight_scale" for name in coded} == {n for n in written if "scale" in n}
    manifest = read_manifest(folder)
    assert (manifest.precision, manifest.kind) == ("fp8", "torch")
    assert manifest.rebuild_command.endswith(f"--only {STAGE} --kind torch --level fp8")
    assert manifest.verification["main"].max_error < 0.01
    argv = ["verify", str(output), "--checkpoints", str(TRAINED)]
    assert main(argv) == 0
    assert "text2image_denoiser: main: engine cosine" in capsys.readouterr().out


def test_layers_that_are_one_product_are_chosen_together(tmp_path, capsys):
    flags = ("--level", "fp8", "--fp8-layers", "self_attn.q_proj")
    assert build(tmp_path / "toy", *flags) != 0
    assert (
        "self_attn.q_proj alone was chosen for FP8; choose all of them" in capsys.readouterr().err
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_none_is_built_for(tmp_path, capsys):
    assert build(tmp_path / "toy", "--device", "cuda") != 0
    assert "finds no GPU here; build it on the machine with the GPU" in capsys.readouterr().err
