# SPDX-License-Identifier: Apache-2.0
"""A whole solver step against the sampler's functions around the same denoiser, which is tested by itself."""

from dataclasses import replace

import pytest
import torch

from predict2_export.networks.dit import Dit
from predict2_kernels import solver_ops, torch_ops
from predict2_runtime.sampler import Guidance, guided_x0, update
from predict2_runtime.schedule import solver_steps
from predict2_runtime.torch_networks import step as module_under_test
from predict2_runtime.torch_networks.denoiser import TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.kept import Kept, Savings
from predict2_runtime.torch_networks.step import TorchStep
from predict2_spec import networks as nets
from predict2_spec.errors import InvalidRequestError

torch.set_num_threads(1)

SPECS = {
    "picture": replace(nets.DIT_TOY_TEXT2IMAGE, num_blocks=2),
    "clip": replace(nets.DIT_TOY_VIDEO2WORLD, num_blocks=2),
}
STEPS = solver_steps(35)
SCALE = 7.0
# The same operations on the same rows, so equal to the bit, but for modulations of one row more where all frames are
# given; two steps of float32 at the largest values, which are about 40.
TOLERANCE = 1e-5


@pytest.fixture
def weights(randomize):
    """From a spec and a dtype to random weights."""

    def make(spec, dtype=torch.float32, device="cpu"):
        dit = randomize(Dit(spec)).to(device, dtype)
        return dit_weights(spec, dit.state_dict().__getitem__)

    return make


def make_inputs(spec, seed=0, *, negative="zeros", conditioned=1):
    """A state, prompts and first frames; `negative` is zeros, another prompt or none."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    frames = 3 if spec.condition_mask else 1
    inputs = {
        "latents": 10 * normal(16, frames, 6, 10),
        "previous_x0": normal(16, frames, 6, 10),
        "prompt_embeds": normal(7, spec.text_width),
    }
    if negative:
        text = normal(7, spec.text_width)
        inputs["negative_prompt_embeds"] = text * (negative != "zeros")
    if spec.condition_mask and conditioned:
        inputs["condition_latents"] = normal(16, conditioned, 6, 10)
    return inputs


def by_the_sampler(dit, inputs, step, scale=SCALE):
    """(latents, x0) as the stage makes them of an engine that evaluates the network alone."""

    def velocity(latents, time, embeds, mask):
        given = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": embeds}
        if "condition_mask" in dit.inputs:
            given["condition_mask"] = torch.zeros_like(latents[:, :1]) if mask is None else mask
        return dit(given)["velocity"].float()

    latents, condition = inputs["latents"], inputs.get("condition_latents")
    guidance = Guidance(inputs["prompt_embeds"], inputs.get("negative_prompt_embeds"), scale)
    x0 = guided_x0(velocity, latents, step.sigma, guidance, condition)
    return update(step, latents, x0, inputs["previous_x0"]), x0


def check(found, expected, tolerance=TOLERANCE):
    assert list(found) == ["latents", "x0"]
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).abs().max() <= tolerance


@pytest.mark.parametrize("savings", [Savings(), Savings(False, False, False), Savings(batched=False)], ids=["all", "none", "row by row"])  # fmt: skip
@pytest.mark.parametrize("negative", ["zeros", "another prompt", ""])
@pytest.mark.parametrize("conditioned", [0, 1, 3])
@pytest.mark.parametrize("name", SPECS)
def test_a_step_is_the_samplers_around_the_network(name, conditioned, negative, savings, weights):
    spec = SPECS[name]
    kept = Kept(weights(spec), savings)
    inputs = make_inputs(spec, negative=negative, conditioned=conditioned)
    for index in (0, 7, 35):
        expected = by_the_sampler(TorchDit(kept), inputs, STEPS[index])
        found = TorchStep(kept)(inputs | STEPS[index].numbers(SCALE))
        check(found, expected)
        if "condition_latents" in inputs:
            assert torch.equal(found["x0"][:, :conditioned], inputs["condition_latents"])


def test_in_float32_a_step_ends_within_a_millionth_of_the_samplers(weights):
    kept = Kept(weights(SPECS["clip"]))
    inputs = make_inputs(SPECS["clip"], negative="another prompt")
    found = TorchStep(kept)(inputs | STEPS[20].numbers(SCALE))
    expected = by_the_sampler(TorchDit(kept), inputs, STEPS[20])
    unguided = by_the_sampler(TorchDit(kept), inputs, STEPS[20], scale=0.0)
    assert (unguided[1] - expected[1]).norm() > 1e-2 * expected[
        1
    ].norm()  # or texts would say nothing
    for ours, theirs in zip(found.values(), expected, strict=True):
        assert (ours - theirs).norm() < 1e-6 * theirs.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_network_of_another_type_is_told_the_same_times(dtype, weights):
    kept = Kept(weights(SPECS["clip"], dtype))
    inputs = make_inputs(SPECS["clip"])
    for index in (0, 7, 35):
        expected = by_the_sampler(TorchDit(kept), inputs, STEPS[index])
        check(TorchStep(kept)(inputs | STEPS[index].numbers(SCALE)), expected)


class Operators:
    """The kernel's operator; on the CPU it computes its reference, and here refuses what it refuses on a GPU."""

    calls = 0

    def cfg_ab2_step(self, *tensors):
        self.calls += 1
        torch_ops._contiguous(*(t for t in tensors if t is not None))
        return solver_ops.cfg_ab2_step(*tensors)


def test_through_the_kernels_operator_it_is_the_same_step(monkeypatch, weights):
    operators = Operators()
    monkeypatch.setattr(module_under_test, "_kernels", lambda x: operators)
    kept = Kept(weights(SPECS["clip"]))
    for negative in ("zeros", ""):
        inputs = make_inputs(SPECS["clip"], negative=negative)
        inputs["latents"] = inputs["latents"].mT.contiguous().mT  # as nobody should send it
        expected = by_the_sampler(TorchDit(kept), inputs, STEPS[7])
        check(TorchStep(kept)(inputs | STEPS[7].numbers(SCALE)), expected)
    assert operators.calls == 2


def test_a_whole_generation_replays_one_recording(captures, weights):
    kept = Kept(weights(SPECS["clip"]))
    recorded, launched = TorchStep(kept, 1), TorchStep(kept)
    inputs = make_inputs(SPECS["clip"], negative="another prompt")
    for index, step in enumerate(STEPS):
        given = inputs | step.numbers(4.0 + index % 3)
        found, expected = recorded(given), launched(given)
        assert torch.equal(found["latents"], expected["latents"])
        assert torch.equal(found["x0"], expected["x0"])
        inputs |= {"latents": found["latents"], "previous_x0": found["x0"]}  # as a caller goes on
    assert captures.made == 1
    assert found["x0"].isfinite().all()


def test_what_changes_the_work_is_recorded_by_itself(captures, weights):
    kept = Kept(weights(SPECS["clip"]))
    recorded, launched = TorchStep(kept, 8), TorchStep(kept)
    kinds = [(n, c) for n in ("zeros", "another prompt", "") for c in (0, 1, 2)]
    for turn in range(2):
        for number, (negative, conditioned) in enumerate(kinds[:8]):
            given = make_inputs(SPECS["clip"], turn, negative=negative, conditioned=conditioned)
            found, expected = (
                of(given | STEPS[3 + turn].numbers(SCALE)) for of in (recorded, launched)
            )
            assert torch.equal(found["latents"], expected["latents"])
            assert captures.made == (8 if turn else number + 1)


def test_which_of_the_prompts_is_zero_is_recorded_by_itself(captures, weights):
    kept = Kept(weights(SPECS["picture"]))
    recorded, launched = TorchStep(kept, 8), TorchStep(kept)
    inputs = make_inputs(SPECS["picture"]) | STEPS[7].numbers(SCALE)
    names = ["prompt_embeds", "negative_prompt_embeds"]
    other = inputs | dict(zip(names[::-1], (inputs[name] for name in names), strict=True))
    for given in (inputs, other, inputs):
        assert torch.equal(recorded(given)["x0"], launched(given)["x0"])
    assert captures.made == 2


def test_prompts_and_modulations_are_read_once_for_steps_and_evaluations_together(
    monkeypatch, weights
):
    kept, calls = Kept(weights(SPECS["picture"])), []
    made = kept._make_modulations
    kept.modulations = lambda times: calls.append(times) or made(times)
    inputs = make_inputs(SPECS["picture"])
    TorchStep(kept)(inputs | STEPS[7].numbers(SCALE))
    by_the_sampler(TorchDit(kept), inputs, STEPS[7])
    assert len(kept._prompts) == 1
    assert calls[0] == calls[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 1.0}, "not .*'sigma'"),
        ({"latents": torch.zeros(16, 3, 6, 9)}, "must be even"),
        ({"latents": torch.zeros(15, 3, 6, 10)}, r"must be \[1, 16, 3, 6, 10\]"),
        ({"latents": torch.zeros(16, 0, 6, 10)}, "no size of them 0"),
        ({"latents": torch.zeros(16, 3)}, "timestep is"),
        ({"latents": torch.zeros(16, 3, 66, 2)}, r"previous_x0 is \[16, 3, 6, 10\] and must be"),
        ({"previous_x0": torch.zeros(16, 2, 6, 10)}, r"must be \[16, 3, 6, 10\]"),
        ({"prompt_embeds": torch.zeros(7, 5)}, r"must be \[1, 7, 64\]"),
        ({"negative_prompt_embeds": torch.zeros(6, 64)}, r"must be \[7, 64\]"),
        ({"condition_latents": torch.zeros(16, 4, 6, 10)}, r"must be \[16, 3, 6, 10\]"),
        ({"condition_latents": torch.zeros(16, 0, 6, 10)}, r"must be \[16, 1, 6, 10\]"),
        ({"condition_latents": torch.zeros(16)}, r"must be \[16, 3, 6, 10\]"),
    ],
)
def test_inputs_that_are_no_step_are_refused(change, message, weights):
    inputs = make_inputs(SPECS["clip"]) | STEPS[0].numbers(SCALE) | change
    with pytest.raises(InvalidRequestError, match=message):
        TorchStep(Kept(weights(SPECS["clip"])))(inputs)


def test_a_grid_that_the_network_does_not_take_is_refused(weights):
    inputs = make_inputs(SPECS["clip"], conditioned=0) | STEPS[0].numbers(SCALE)
    inputs |= {name: torch.zeros(16, 3, 66, 2) for name in ("latents", "previous_x0")}
    with pytest.raises(InvalidRequestError, match=r"a grid of \[3, 33, 1\] tokens was given"):
        TorchStep(Kept(weights(SPECS["clip"])))(inputs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_on_a_gpu_recorded_steps_are_the_launched_ones_to_the_bit(name, dtype, weights):
    kept = Kept(weights(SPECS[name], dtype, "cuda"))
    recorded, launched = TorchStep(kept, 2), TorchStep(kept)
    held = []
    for index in (0, 1, 7, 34, 35):
        for negative in ("zeros", "another prompt"):
            given = make_inputs(SPECS[name], index, negative=negative)
            given = {k: v.cuda() for k, v in given.items()} | STEPS[index].numbers(SCALE)
            held.append((recorded(given), launched(given)))
            if dtype == torch.float32:
                expected = by_the_sampler(TorchDit(kept), given, STEPS[index])
                check(launched(given), expected, 1e-3)  # also of kernels that sum otherwise
    for found, expected in held:
        assert torch.equal(found["latents"], expected["latents"])
        assert torch.equal(found["x0"], expected["x0"])
