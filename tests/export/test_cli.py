# SPDX-License-Identifier: Apache-2.0
"""The commands of predict2-export as a person runs them."""

from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.cli import COMMANDS, main
from predict2_export.commands.build import by_task
from predict2_export.networks.dit import Dit
from predict2_export.toy import TRAINED
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import PRESETS, TOY


@pytest.mark.parametrize("command", [c.__name__.rpartition(".")[2] for c in COMMANDS])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command.replace("_", "-"), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: predict2-export {command.replace('_', '-')}")


def test_one_network_is_lowered_to_onnx_without_a_checkpoint(tmp_path, capsys):
    argv = ["onnx", "--preset", "toy", "--stage", "text_encoder", "--random-weights"]
    assert main([*argv, "--dtype", "float16", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.rstrip().endswith("done")
    model = onnx.load(str(tmp_path / "text_encoder.main.onnx"))
    table = next(t for t in model.graph.initializer if t.name == "encoder.embed_tokens.weight")
    assert table.data_type == onnx.TensorProto.FLOAT16
    assert list(table.dims) == [TOY.text_encoder.vocab_size, TOY.text_encoder.width]


def test_a_stage_that_the_preset_lacks_is_refused_by_name(tmp_path, capsys):
    argv = ["onnx", "--preset", "0.6b", "--stage", "vae_encoder", "--output", str(tmp_path)]
    assert main(argv) == 1
    assert "preset 0.6b has no vae_encoder; it has text_encoder," in capsys.readouterr().err


def test_a_sparse_network_is_refused_before_any_work(tmp_path, capsys):
    preset = ["--preset", "2b-720p-16fps-sparse", "--output", str(tmp_path / "out")]
    for argv in (["build", *preset], ["onnx", *preset, "--stage", "video2world_denoiser"]):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert "model-720p-16fps-natten.pt is a network with sparse attention" in error
        assert "take the preset of the same name without -sparse" in error


def test_a_missing_checkpoint_is_named(tmp_path, capsys):
    argv = ["onnx", "--preset", "0.6b", "--stage", "text2image_denoiser"]
    assert main([*argv, "--checkpoints", str(tmp_path), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert str(tmp_path / PRESETS["0.6b"].text2image_path) in error
    assert "Traceback" not in error


def test_synthetic_weights_are_the_seeds_in_whatever_order_they_are_read():
    network = Dit(TOY.text2image)
    once, again = synthetic_weights(network, 3), synthetic_weights(network, 3)
    other = synthetic_weights(network, 4)
    assert once.keys() == dict(network.named_parameters()).keys()
    for name in reversed(once):
        assert torch.equal(once[name].load(), again[name].load())
    name = "blocks.0.mlp.layer1.weight"
    assert not torch.equal(once[name].load(), other[name].load())
    assert once[name].load().std().item() == pytest.approx(TOY.text2image.width**-0.5, rel=0.05)


def test_post_trained_files_go_to_the_task_they_name_or_to_the_presets_main_one():
    clips, pictures = PRESETS["2b-720p-16fps"], PRESETS["0.6b"]
    assert by_task(clips, ["a.pt", "text2image=b.pt"]) == {
        "video2world": Path("a.pt"),
        "text2image": Path("b.pt"),
    }
    assert by_task(pictures, ["a.pt"]) == {"text2image": Path("a.pt")}
    with pytest.raises(InvalidRequestError, match=r"preset 0\.6b has no video2world network"):
        by_task(pictures, ["video2world=a.pt"])
    with pytest.raises(InvalidRequestError, match=r"b\.pt: video2world was given a\.pt already"):
        by_task(clips, ["a.pt", "video2world=b.pt"])


def test_an_average_of_no_weights_is_refused(capsys):
    assert main(["build", "--load-ema"]) == 1
    assert "--load-ema says which weights of a --dit-path to take" in capsys.readouterr().err


def test_a_disk_without_room_is_refused_before_anything_is_lowered(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    argv = ["--only", "text_encoder", "--output", str(tmp_path / "served")]
    assert main(["build", "--checkpoints", str(TRAINED), *argv]) == 1
    error = capsys.readouterr().err
    assert "has 1.00 kB free and the ONNX files take 280.32 kB; make room" in error
    assert list((tmp_path / "served").iterdir()) == []
