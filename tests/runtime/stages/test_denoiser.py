# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from predict2_runtime.stages.denoiser import Denoiser
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import TOY

EMBEDS = (TOY.text_encoder.num_tokens, TOY.text_encoder.width)


def engine(inputs):
    """A network whose velocity is its input plus a little of the text, and that insists on its input names."""
    latents, embeds = inputs["hidden_states"], inputs["encoder_hidden_states"]
    assert inputs["timestep"].shape == (latents.shape[0], latents.shape[2])
    return {"velocity": 0.1 * latents + embeds.mean((1, 2)).reshape(-1, 1, 1, 1, 1)}


def step_inputs(frames=1, height=4, width=6, **changes):
    rng = np.random.RandomState(0)
    inputs = {
        "latents": rng.randn(16, frames, height, width).astype(np.float32),
        "previous_x0": np.zeros((16, frames, height, width), np.float32),
        "step": np.array([0]),
        "num_steps": np.array([35]),
        "guidance": np.array([4.0]),
        "prompt_embeds": np.ones(EMBEDS, np.float32),
        "negative_prompt_embeds": np.zeros(EMBEDS, np.float32),
    }
    return {**inputs, **changes}


PICTURE = Denoiser(TOY, "text2image", engine)
CLIP = Denoiser(TOY, "video2world", engine)


def test_a_step_depends_on_its_inputs_alone():
    first = PICTURE(step_inputs())
    PICTURE(step_inputs(latents=np.ones((16, 1, 4, 6), np.float32)))
    again = PICTURE(step_inputs())
    assert np.array_equal(first["latents"], again["latents"])
    assert np.array_equal(first["x0"], again["x0"])


def test_the_last_step_returns_the_clean_prediction():
    outputs = PICTURE(step_inputs(step=np.array([35])))
    assert np.array_equal(outputs["latents"], outputs["x0"])


def test_conditional_frames_are_kept_in_x0():
    condition = np.full((16, 2, 4, 6), 3, np.float32)
    outputs = CLIP(step_inputs(frames=4, condition_latents=condition))
    assert np.array_equal(outputs["x0"][:, :2], condition)


def test_the_solver_can_be_chosen():
    late = {"step": np.array([3]), "previous_x0": np.ones((16, 1, 4, 6), np.float32)}
    ab2 = PICTURE(step_inputs(**late))
    euler = PICTURE(step_inputs(**late, solver=["euler"]))
    assert not np.allclose(ab2["latents"], euler["latents"])


DISTILLED = replace(PICTURE, preset=replace(PICTURE.preset, distilled=True))


def test_a_distilled_network_answers_with_its_prediction_and_takes_only_its_own_steps():
    few = {"num_steps": np.array([4]), "solver": ["distilled"]}
    for step in range(4):
        outputs = DISTILLED(step_inputs(**few, step=np.array([step])))
        assert np.array_equal(outputs["latents"], outputs["x0"])
    with pytest.raises(InvalidRequestError, match="num_steps 5 must be between 1 and 4"):
        DISTILLED(step_inputs(**{**few, "num_steps": np.array([5])}))
    with pytest.raises(InvalidRequestError, match="solver 'ab2' is none of this network's"):
        DISTILLED(step_inputs(**{**few, "solver": ["ab2"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": np.array([36])}, "step 36 must be between 0 and 35"),
        ({"step": np.array([-1])}, "step -1 must be"),
        ({"num_steps": np.array([0])}, "num_steps 0 must be between 1 and 100"),
        ({"guidance": np.array([np.nan])}, "guidance nan must be a number from 0 up"),
        ({"latents": np.full((16, 1, 4, 6), np.nan, np.float32)}, "latents holds NaN"),
        ({"prompt_embeds": np.full(EMBEDS, np.inf, np.float32)}, "prompt_embeds holds NaN"),
        ({"solver": ["magic"]}, "solver 'magic' is none of this network's; choose one of ab2, eul"),
        ({"solver": ["distilled"]}, "solver 'distilled' is none of this network's"),
        (
            {"latents": np.zeros((16, 1, 5, 6), np.float32)},
            "height 40 must be a positive multiple of 16",
        ),
        ({"latents": np.zeros((16, 0, 4, 6), np.float32)}, "num_frames -3 must be"),
        ({"latents": np.zeros((16, 1, 66, 6), np.float32)}, r"preset toy takes .* at most"),
        ({"previous_x0": np.zeros((16, 1, 4, 4), np.float32)}, "must have the shape of latents"),
        ({"prompt_embeds": np.zeros((5, 3), np.float32)}, "as text_encoder makes it"),
        (
            {"condition_latents": np.zeros((16, 2, 4, 6), np.float32)},
            "must be the first frames of latents",
        ),
    ],
)
def test_inputs_the_network_cannot_take_are_refused(changes, message):
    with pytest.raises(InvalidRequestError, match=message):
        CLIP(step_inputs(**changes))
