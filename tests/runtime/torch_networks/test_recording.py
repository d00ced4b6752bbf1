# SPDX-License-Identifier: Apache-2.0
"""What recordings keep and copy. CUDA graphs themselves are in test_denoiser.py, for a GPU."""

from dataclasses import replace

import pytest
import torch

from predict2_export.networks.dit import Dit
from predict2_runtime.torch_networks import denoiser
from predict2_runtime.torch_networks.denoiser import TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.recording import Recordings
from predict2_spec.networks import DIT_TOY_VIDEO2WORLD

torch.set_num_threads(1)

SPEC = replace(DIT_TOY_VIDEO2WORLD, num_blocks=2)


class Captures:
    """Records as a CUDA graph does, on the CPU: a replay reads what lies where the inputs were then."""

    def __init__(self):
        self.made = 0

    def __call__(self, run, fixed):
        self.made += 1
        velocity = torch.full_like(
            fixed.hidden_states, torch.nan
        )  # as poison: nothing is computed yet
        return velocity, lambda: velocity.copy_(run(fixed))


@pytest.fixture
def engines(randomize, monkeypatch):
    """From a number of recordings to an engine that launches, one that replays, and what it captured."""

    def make(most):
        dit, captures = randomize(Dit(SPEC)).double(), Captures()
        weights = dit_weights(SPEC, dit.state_dict().__getitem__)
        direct = TorchDit(weights)
        monkeypatch.setattr(
            denoiser, "Recordings", lambda run, most: Recordings(run, most, captures)
        )
        return direct, TorchDit(weights, recorded=most), captures

    return make


def make_inputs(seed, frames=2, zero_text=True):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    text = normal(2, 5, SPEC.text_width)
    if zero_text:
        text[1] = 0
    mask = torch.zeros(2, 1, frames, 4, 6, dtype=torch.float64)
    mask[:, :, : 1 + seed % 2] = 1
    return {
        "hidden_states": normal(1, 16, frames, 4, 6).repeat(2, 1, 1, 1, 1),
        "timestep": torch.full((2, frames), 0.1 * (1 + seed), dtype=torch.float64),
        "encoder_hidden_states": text,
        "condition_mask": mask,
    }


def test_each_replay_has_the_numbers_of_its_call_and_gives_memory_of_its_own(engines):
    direct, recorded, captures = engines(1)
    pairs = []
    for seed in (0, 1, 2, 1):  # latents, times, mask and prompts are all others
        inputs = make_inputs(seed)
        pairs.append((recorded(inputs)["velocity"], direct(inputs)["velocity"]))
    assert captures.made == 1
    for found, expected in pairs:
        assert torch.equal(found, expected)


def test_prompts_by_turns_are_copied_each_time(engines):
    direct, recorded, _ = engines(1)
    first, second = (make_inputs(0) | {"encoder_hidden_states": make_inputs(s)["encoder_hidden_states"]} for s in (1, 2))  # fmt: skip
    for inputs in (first, second, first, first, second):
        assert torch.equal(recorded(inputs)["velocity"], direct(inputs)["velocity"])


def test_what_changes_the_work_is_recorded_by_itself_and_the_oldest_makes_room(engines):
    direct, recorded, captures = engines(2)
    kinds = [make_inputs(0), make_inputs(0, frames=3), make_inputs(0, zero_text=False)]
    for which, made in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        found = recorded(kinds[which])["velocity"]
        assert torch.equal(found, direct(kinds[which])["velocity"])
        assert captures.made == made
