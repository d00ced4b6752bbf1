# SPDX-License-Identifier: Apache-2.0
"""The schedule and the solver against the golden numbers of the original's formulas."""

import math

import numpy as np
import pytest
import torch

from predict2_runtime.sampler import (
    Guidance,
    guided_x0,
    initial_noise,
    replace_first_frames,
    update,
)
from predict2_runtime.schedule import flow_time, karras_sigmas, solver_steps
from predict2_spec.video import LatentShape

SIGMAS = [
    80, 68.3251, 58.1421, 49.2886, 41.6168, 34.9922, 29.2928, 24.4083, 20.2393, 16.6962, 13.6986, 11.1746,
    9.06026, 7.29851, 5.83895, 4.63707, 3.65381, 2.85496, 2.21074, 1.69537, 1.28661, 0.965417, 0.715556,
    0.523309, 0.377149, 0.267475, 0.186359, 0.127313, 0.0850872, 0.0554835, 0.0351867, 0.0216184, 0.0128067,
    0.0072721, 0.00392871, 0.002,
]  # fmt: skip


def trajectory(solver, dtype=torch.float32):
    """The golden test's scalar problem: x0(x, sigma) = tanh(x / (sigma + 1))."""
    # In torch, as the golden numbers were made: numpy's float32 tanh ends an ulp away.
    x = torch.tensor([80 * 1.764052345967664]).to(dtype)
    previous, states = torch.zeros_like(x), []
    for step in solver_steps(35, solver):
        x0 = torch.tanh(x / (step.sigma + 1))
        x, previous = update(step, x, x0, previous), x0
        states.append(x.item())
    return states


def test_schedule_has_the_original_noise_levels():
    assert karras_sigmas(36) == pytest.approx(SIGMAS, rel=5e-6)  # six printed digits


def test_adams_bashforth_gives_the_golden_states():
    states = trajectory("ab2")
    assert len(states) == 36
    golden = {0: "120.666237", 1: "102.822571", 2: "87.308655", 17: "4.796361", 34: "0.5305265"}
    for index, printed in golden.items():
        digits = len(printed.split(".")[1])
        assert f"{states[index]:.{digits}f}" == printed
    assert f"{states[35]:.6f}" == "0.484974"


def test_euler_gives_the_golden_final_state():
    # float64: the golden number's seventh digit is finer than float32's spacing there (6e-8)
    states = trajectory("euler", torch.float64)
    assert len(states) == 34
    assert f"{states[-1]:.7f}" == "0.5703678"


def test_solver_weights_reproduce_a_constant_prediction():
    # If every prediction is the same point, the exact flow moves on the line towards it.
    steps = solver_steps(35)
    for step, following in zip(steps[:-1], karras_sigmas(36)[1:], strict=True):
        assert step.now + step.before == pytest.approx(1 - following / step.sigma, abs=1e-12)
        assert step.keep == pytest.approx(following / step.sigma, rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 100])
@pytest.mark.parametrize("solver", ["ab2", "euler"])
def test_any_number_of_steps_gives_finite_weights(num_steps, solver):
    for step in solver_steps(num_steps, solver):
        assert all(math.isfinite(v) for v in (step.keep, step.now, step.before))


def test_noise_is_numpys_legacy_generator_scaled_to_the_highest_level():
    small = initial_noise(0, LatentShape(1, 96, 170))
    first = small.ravel()[:4] / 80
    assert first == pytest.approx([1.7640524, 0.4001572, 0.9787380, 2.2408931], abs=5e-8)
    assert small.ravel()[-1] / 80 == pytest.approx(-0.85090053, abs=5e-8)
    clip = initial_noise(0, LatentShape(24, 88, 160))
    assert clip.ravel()[-1] / 80 == pytest.approx(0.61868244, abs=5e-8)
    assert clip.dtype == np.float32


def straight_line(latents, time, embeds, mask):
    """A network that knows the answer: the velocity of noise towards the mean of its text."""
    target = embeds.mean((1, 2))[:, None, None, None, None]
    t = time[:, None, :, None, None]
    return (latents - target) / t


def test_guidance_adds_the_difference_to_the_conditional_prediction():
    latents = np.random.RandomState(1).randn(16, 1, 4, 4).astype(np.float32)
    guidance = Guidance(np.full((3, 2), 2.0, np.float32), np.full((3, 2), 0.5, np.float32), 4.0)
    x0 = guided_x0(straight_line, latents, 1.5, guidance)
    assert x0 == pytest.approx(2.0 + 4.0 * (2.0 - 0.5), abs=1e-5)


def test_without_a_negative_prompt_the_network_runs_once():
    batches = []

    def velocity(latents, time, embeds, mask):
        batches.append(latents.shape[0])
        return straight_line(latents, time, embeds, mask)

    latents = np.ones((16, 2, 4, 4), np.float32)
    alone = guided_x0(velocity, latents, 2.0, Guidance(np.ones((3, 2), np.float32), None, 7.0))
    same = np.ones((3, 2), np.float32)
    both = guided_x0(velocity, latents, 2.0, Guidance(same, same, 7.0))
    assert batches == [1, 2]
    assert np.array_equal(alone, both)


def test_conditional_frames_go_in_clean_with_their_own_time_and_come_out_unchanged():
    seen = {}

    def velocity(latents, time, embeds, mask):
        seen.update(latents=latents, time=time, mask=mask)
        return np.zeros_like(latents)

    rng = np.random.RandomState(0)
    latents = rng.randn(16, 4, 2, 2).astype(np.float32)
    condition = rng.randn(16, 2, 2, 2).astype(np.float32)
    embeds = np.zeros((3, 2), np.float32)
    x0 = guided_x0(velocity, latents, 3.0, Guidance(embeds, embeds + 1, 7.0), condition)
    assert np.array_equal(seen["latents"][1, :, :2], condition)
    assert seen["latents"][0, :, 2:] == pytest.approx(latents[:, 2:] * 0.25)
    assert seen["time"][0] == pytest.approx([1e-4 / 1.0001] * 2 + [0.75] * 2)
    assert seen["mask"][:, 0, :, 0, 0].tolist() == [[1, 1, 0, 0]] * 2
    assert np.array_equal(x0[:, :2], condition)


def test_numpy_and_torch_give_the_same_step():
    rng = np.random.RandomState(3)
    latents, previous = (rng.randn(16, 3, 2, 2).astype(np.float32) for _ in range(2))
    condition = rng.randn(16, 1, 2, 2).astype(np.float32)
    embeds = [rng.randn(3, 2).astype(np.float32) for _ in range(2)]

    def step(convert):
        guidance = Guidance(convert(embeds[0]), convert(embeds[1]), 7.0)
        state = convert(latents)
        entry = solver_steps(35)[5]
        x0 = guided_x0(straight_line, state, entry.sigma, guidance, convert(condition))
        return update(entry, state, x0, convert(previous))

    # the same float32 operations up to the order of a mean over six numbers
    np.testing.assert_allclose(
        step(torch.from_numpy).numpy(), step(np.asarray), rtol=1e-5, atol=1e-5
    )


def test_replacing_frames_leaves_a_state_without_condition_alone():
    latents = np.ones((16, 2, 2, 2), np.float32)
    assert replace_first_frames(latents, None) is latents


def test_flow_time_is_between_zero_and_one():
    assert [flow_time(s) for s in (0.0, 1.0, 80.0)] == pytest.approx([0, 0.5, 80 / 81])
