# SPDX-License-Identifier: Apache-2.0
"""What recordings keep and copy. CUDA graphs themselves are in the tests of the networks, for a GPU."""

import weakref
from dataclasses import replace

import pytest
import torch

from predict2_export.networks.dit import Dit
from predict2_runtime.torch_networks.denoiser import TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.recording import Recordings
from predict2_spec.networks import DIT_TOY_VIDEO2WORLD

torch.set_num_threads(1)

SPEC = replace(DIT_TOY_VIDEO2WORLD, num_blocks=2)


@pytest.fixture
def engines(randomize, captures):
    """From a number of recordings to an engine that launches and one that replays."""

    def make(most):
        dit = randomize(Dit(SPEC)).double()
        weights = dit_weights(SPEC, dit.state_dict().__getitem__)
        return TorchDit(weights), TorchDit(weights, recorded=most)

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


def test_each_replay_has_the_numbers_of_its_call_and_gives_memory_of_its_own(engines, captures):
    direct, recorded = engines(1)
    pairs = []
    for seed in (0, 1, 2, 1):  # latents, times, mask and prompts are all others
        inputs = make_inputs(seed)
        pairs.append((recorded(inputs)["velocity"], direct(inputs)["velocity"]))
    assert captures.made == 1
    for found, expected in pairs:
        assert torch.equal(found, expected)


def test_prompts_by_turns_are_copied_each_time(engines):
    direct, recorded = engines(1)
    first, second = (make_inputs(0) | {"encoder_hidden_states": make_inputs(s)["encoder_hidden_states"]} for s in (1, 2))  # fmt: skip
    for inputs in (first, second, first, first, second):
        assert torch.equal(recorded(inputs)["velocity"], direct(inputs)["velocity"])


def test_what_changes_the_work_is_recorded_by_itself_and_the_oldest_makes_room(engines, captures):
    direct, recorded = engines(2)
    kinds = [make_inputs(0), make_inputs(0, frames=3), make_inputs(0, zero_text=False)]
    for which, made in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4)):
        found = recorded(kinds[which])["velocity"]
        assert torch.equal(found, direct(kinds[which])["velocity"])
        assert captures.made == made


def add(x, y):
    return x + y, x - y


def test_results_may_be_given_back_as_inputs_and_stay_what_they_are(captures):
    recordings = Recordings(1, captures)
    total, difference = torch.ones(3), torch.zeros(3)
    expected, given = [(total, difference)], [(total, difference)]
    for _ in range(4):
        given.append(recordings(add, given[-1]))
        expected.append(add(*expected[-1]))
    assert captures.made == 1
    for found, wanted in zip(given, expected, strict=True):
        assert all(map(torch.equal, found, wanted))


def test_room_is_made_before_a_recording_needs_its_memory(captures):
    held = []  # results of all recordings that there are, when another begins

    def capture(work):
        found.append([ref for ref in held if ref() is not None])
        results, replay = captures(work)
        held.append(weakref.ref(results[0]))
        return results, replay

    found = []
    recordings = Recordings(2, capture)
    for size in (1, 2, 3, 4):
        recordings(add, (torch.ones(size), torch.ones(size)))
    assert [len(alive) for alive in found] == [0, 1, 1, 1]


def test_what_could_not_be_recorded_is_tried_again_and_the_others_stay(captures):
    failing = [True]

    def capture(work):
        if len(work()[0]) == 2 and failing:
            failing.pop()
            raise RuntimeError("out of memory")
        return captures(work)

    recordings = Recordings(2, capture)
    given = [(torch.randn(size), torch.randn(size)) for size in (1, 2)]
    recordings(add, given[0])
    with pytest.raises(RuntimeError, match="out of memory"):
        recordings(add, given[1])
    for pair in (*given, *given):
        assert all(map(torch.equal, recordings(add, pair), add(*pair)))
    assert captures.made == 2


def test_a_constant_is_copied_when_it_is_another_tensor(captures):
    recordings = Recordings(1, captures)
    constants = [torch.full((3,), float(value)) for value in range(3)]
    for index in (0, 1, 1, 2, 0):
        x = torch.randn(3)
        found = recordings(add, (x,), (constants[index],))
        assert all(map(torch.equal, found, add(x, constants[index])))
    assert captures.made == 1


@pytest.mark.parametrize(
    ("x", "constants", "facts"),
    [
        (torch.ones(2), (torch.ones(1),), 0),
        (torch.ones(3, dtype=torch.float64), (torch.ones(1),), 0),
        (torch.ones(3), (torch.ones(3),), 0),
        (torch.ones(3), (torch.ones(1),), 1),
    ],
    ids=["shape", "dtype", "a constant's shape", "facts"],
)
def test_another_function_is_recorded_by_itself(captures, x, constants, facts):
    recordings = Recordings(2, captures)
    recordings(add, (torch.ones(3),), (torch.ones(1),), 0)
    found = recordings(add, (x,), constants, facts)
    assert captures.made == 2
    assert all(map(torch.equal, found, add(x, constants[0])))


def test_nothing_is_recorded_where_nothing_may_be_kept(captures):
    found = Recordings(0, captures)(add, (torch.ones(3), torch.ones(3)))
    assert captures.made == 0
    assert all(map(torch.equal, found, add(torch.ones(3), torch.ones(3))))


@pytest.mark.gpu
def test_on_a_gpu_a_recording_keeps_its_memory_when_another_makes_room():
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    recordings = Recordings(2)

    def products(x):
        return (x @ weight @ weight,)

    # few rows, for which cuBLAS sums in parts that it puts into its scratch memory
    given = [torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16) for rows in (16, 32, 48)]
    for index in (0, 1, 2, 1, 2):
        torch.cuda.empty_cache()  # what nobody holds goes back to the driver
        (found,) = recordings(products, (given[index],))
        assert torch.equal(found, *products(given[index]))
