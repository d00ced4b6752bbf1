# SPDX-License-Identifier: Apache-2.0
"""The trained toy, measured briefly."""

import pytest

from predict2_export.fp8.calibrate import Measurement, calibrate
from predict2_export.recipes import recipes
from predict2_export.toy import TRAINED
from predict2_spec.presets import TOY

HOW = Measurement(("a red ball moves left over white", "a blue bar is still"), num_steps=4)


@pytest.fixture(scope="session")
def toy_recipes():
    return recipes(TOY, TRAINED)


@pytest.fixture(scope="session")
def how():
    return HOW


@pytest.fixture(scope="session")
def calibrations(toy_recipes):
    networks = ("text2image_denoiser", "video2world_denoiser")
    return {n: calibrate(TOY, toy_recipes, n, HOW, lambda line: None) for n in networks}
