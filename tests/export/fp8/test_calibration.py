# SPDX-License-Identifier: Apache-2.0
"""A calibration as a file, and what it is refused for."""

import json
from dataclasses import replace

import pytest

from predict2_export.fp8.calibration import Calibration, read_calibration
from predict2_spec.errors import CheckpointError

CALIBRATION = Calibration(
    preset="toy",
    network="text2image_denoiser",
    checkpoint_sha256="ab" * 32,
    prompts=("a red ball", "ein blauer Würfel"),
    num_steps=35,
    margin=0.1,
    modelopt="0.47.0",
    amax={"blocks.1.mlp.layer1": 4.0, "blocks.2.mlp.layer1": 0.0},
)


def written(folder, text):
    path = folder / "calibration.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_reads_back_as_it_was(tmp_path):
    assert read_calibration(written(tmp_path, CALIBRATION.to_json())) == CALIBRATION


def test_the_margin_is_added_to_the_largest_value():
    scales = CALIBRATION.input_scales(CALIBRATION.amax)
    # 4.4 / 448, to bfloat16's 8 bits
    assert scales["blocks.1.mlp.layer1"] == pytest.approx(4.4 / 448, rel=2**-8)
    assert replace(CALIBRATION, margin=0.0).input_scales(CALIBRATION.amax)[
        "blocks.1.mlp.layer1"
    ] == pytest.approx(4.0 / 448, rel=2**-8)
    assert scales["blocks.2.mlp.layer1"] == 1.0  # nothing but zeros came


def test_a_layer_that_was_not_measured_is_named():
    with pytest.raises(CheckpointError, match=r"says nothing of 1 layers, such as blocks\.9\.mlp\.layer1; calibrate again"):  # fmt: skip
        CALIBRATION.input_scales(["blocks.1.mlp.layer1", "blocks.9.mlp.layer1"])


@pytest.mark.parametrize(
    ("amax", "told"),
    [
        (float("nan"), "says nothing of 1 layers"),
        (-4.0, "says nothing of 1 layers"),  # which would become the scale of nothing but zeros
        (float("inf"), "has inf as the largest input of blocks"),
        (1e300, r"has 1e\+300 as the largest input of blocks"),
    ],
)
def test_a_largest_value_that_gives_no_scale_is_refused(amax, told):
    broken = replace(CALIBRATION, amax={"blocks.1.mlp.layer1": amax})
    with pytest.raises(CheckpointError, match=told):
        broken.input_scales(["blocks.1.mlp.layer1"])


def test_other_weights_are_refused():
    CALIBRATION.check("text2image_denoiser", "ab" * 32, "a.json")
    with pytest.raises(CheckpointError, match=r"a\.json was measured on text2image_denoiser of preset toy with checkpoint abababababab, and text2image_denoiser is built from cdcdcdcdcdcd; calibrate again"):  # fmt: skip
        CALIBRATION.check("text2image_denoiser", "cd" * 32, "a.json")
    with pytest.raises(CheckpointError, match="and video2world_denoiser is built from"):
        CALIBRATION.check("video2world_denoiser", "ab" * 32, "a.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 7}, "of format 7 and this software reads 1"),
        ({"amax": [1.0]}, "can't be read as a calibration"),
        ({"amax": {"a": "x"}}, "can't be read as a calibration"),
        ({"unknown": 1}, "can't be read as a calibration"),
        ({"prompts": None}, "can't be read as a calibration"),
        ({"prompts": "a red ball"}, "can't be read as a calibration"),
        ({"checkpoint_sha256": None}, "can't be read as a calibration"),
        ({"margin": "0.1"}, "can't be read as a calibration"),
        ({"margin": -3}, "margin -3 must be between 0 and 1"),
        ({"margin": float("nan")}, "margin nan must be between 0 and 1"),
        ({"layers": [3]}, "can't be read as a calibration"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, told):
    values = json.loads(CALIBRATION.to_json()) | change
    with pytest.raises(CheckpointError, match=told):
        read_calibration(written(tmp_path, json.dumps(values)))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}"])
def test_what_is_no_calibration_is_refused(tmp_path, text):
    with pytest.raises(CheckpointError, match="can't be read as a calibration"):
        read_calibration(written(tmp_path, text))
    with pytest.raises(CheckpointError, match=r"none\.json can't be read as a calibration"):
        read_calibration(tmp_path / "none.json")
