# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from predict2_export.build import build
from predict2_export.cli import main
from predict2_runtime.engines import read_manifest
from predict2_spec.presets import TOY

TEMPLATES = Path(__file__).parents[3] / "model_repository"


@pytest.fixture(scope="module")
def repository(checkpoints, tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "toy"
    build(TOY, checkpoints, TEMPLATES, output, lambda line: None, only="text_encoder")
    return output


def verify(*arguments):
    return main(["verify", *map(str, arguments)])


def test_every_engine_that_is_there_is_compared(repository, checkpoints, capsys):
    assert verify(repository, "--checkpoints", checkpoints) == 0
    told = capsys.readouterr().out
    assert "[1/1] text_encoder: main: engine cosine 1.0000000" in told
    assert "1 engines agree with torch" in told
    assert "main" in read_manifest(repository / "text_encoder" / "1").verification


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "vae_decoder"], "has no vae_decoder; it has text_encoder"),
        (["--random-weights"], "was made from other weights than random weights"),
        (["--load-ema"], "name one"),
    ],
)
def test_what_cannot_be_compared_is_refused(repository, checkpoints, capsys, arguments, reason):
    assert verify(repository, "--checkpoints", checkpoints, *arguments) == 1
    assert reason in capsys.readouterr().err


def test_missing_checkpoints_are_named(repository, tmp_path, capsys):
    assert verify(repository, "--checkpoints", tmp_path) == 1
    assert f"needs {tmp_path / TOY.text_encoder_path}" in capsys.readouterr().err


def test_a_folder_that_is_no_repository_is_named(tmp_path, capsys):
    assert verify(tmp_path) == 1
    assert f"{tmp_path} is no repository made by predict2-export" in capsys.readouterr().err
