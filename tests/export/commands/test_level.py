# SPDX-License-Identifier: Apache-2.0
"""The flags of levels as a person gives them."""

import json

import onnx
import pytest

from predict2_export.cli import main
from predict2_export.fp8.calibration import read_calibration
from predict2_export.toy import TRAINED

CHECKPOINTS = ["--checkpoints", str(TRAINED)]
STAGE = "text2image_denoiser"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibration")
    path, prompts = folder / "text2image.json", folder / "prompts.txt"
    prompts.write_text("a red ball moves left\n")
    flags = ["--calibration-prompts", str(prompts), "--calibration-margin", "0.2"]
    assert main(["calibrate", "--stage", STAGE, "--output", str(path), *CHECKPOINTS, *flags]) == 0
    return path


def told(argv, capsys):
    """The error of a command that is refused."""
    assert main([str(part) for part in argv]) == 1
    return capsys.readouterr().err


def test_a_calibration_says_what_it_was_measured_on(calibration):
    found = read_calibration(calibration)
    assert (found.preset, found.network, found.num_steps) == ("toy", STAGE, 35)
    assert (found.prompts, found.margin) == (("a red ball moves left",), 0.2)
    assert found.modelopt
    assert found.layers == ()


def test_a_denoiser_is_lowered_in_fp8_for_a_builder_elsewhere(calibration, tmp_path):
    argv = ["onnx", "--preset", "toy", "--stage", STAGE, "--output", str(tmp_path), *CHECKPOINTS]
    assert main([*argv, "--calibration", str(calibration)]) == 0
    model = onnx.load(str(tmp_path / f"{STAGE}.main.onnx"), load_external_data=False)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["blocks.1.mlp.layer1.weight"] == onnx.TensorProto.FLOAT8E4M3FN
    assert kinds["blocks.1.mlp.layer1.weight_scale"] == onnx.TensorProto.BFLOAT16
    assert kinds["blocks.0.mlp.layer1.weight"] == onnx.TensorProto.BFLOAT16


def test_flags_of_fp8_are_refused_at_the_level_exact(capsys):
    error = told(["build", "--fp8-layers", "mlp.*", "--calibration-margin", "0"], capsys)
    assert "--calibration-margin, --fp8-layers: these are of --level fp8; add it" in error


def test_layers_that_no_network_has_are_refused_before_any_work(tmp_path, capsys):
    argv = ["build", "--level", "fp8", "--output", tmp_path / "toy", *CHECKPOINTS]
    assert "called 'mpl.*'; a block has self_attn.q_proj" in told([*argv, "--fp8-layers", "mpl.*"], capsys)  # fmt: skip
    assert "keep 0 to 2" in told([*argv, "--fp8-keep-blocks", 3], capsys)
    assert not (tmp_path / "toy").exists()


def test_a_sparse_network_is_refused_before_it_is_measured(tmp_path, capsys):
    argv = ["--preset", "2b-720p-16fps-sparse", "--output", tmp_path / "out"]
    error = told(["build", "--level", "fp8", *argv], capsys)
    assert "is a network with sparse attention" in error
    error = told(["calibrate", "--stage", "video2world_denoiser", *argv], capsys)
    assert "is a network with sparse attention" in error


def test_missing_checkpoints_are_named_with_what_gets_them(tmp_path, capsys):
    argv = ["--preset", "0.6b", "--checkpoints", tmp_path, "--output", tmp_path / "out"]
    assert "predict2-export fetch --preset 0.6b" in told(["build", "--level", "fp8", *argv], capsys)
    assert "predict2-export fetch --preset 0.6b" in told(["calibrate", "--stage", STAGE, *argv], capsys)  # fmt: skip
    assert "preset 0.6b has no video2world_denoiser; its tasks are text2image" in told(
        ["calibrate", "--stage", "video2world_denoiser", *argv], capsys
    )


def test_a_calibration_of_other_weights_is_refused(calibration, tmp_path, capsys):
    values = json.loads(calibration.read_text()) | {"checkpoint_sha256": "0" * 64}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(values))
    argv = ["onnx", "--preset", "toy", "--stage", STAGE, "--output", tmp_path, *CHECKPOINTS]
    error = told([*argv, "--calibration", other], capsys)
    assert f"{other} was measured on {STAGE} of preset toy with checkpoint 000000000000" in error


def test_a_calibration_without_its_weights_makes_no_sense(calibration, tmp_path, capsys):
    argv = ["onnx", "--preset", "toy", "--output", tmp_path, "--calibration", calibration]
    error = told([*argv, "--stage", STAGE, "--random-weights"], capsys)
    assert "--random-weights are none that a --calibration was measured on" in error
    error = told([*argv, "--stage", "vae_decoder"], capsys)
    assert "vae_decoder has no level fp8, only denoisers have" in error
