# SPDX-License-Identifier: Apache-2.0
"""The torch denoiser against export's module, which is held against diffusers elsewhere."""

from dataclasses import replace

import pytest
import torch

from predict2_export.networks.dit import Dit
from predict2_kernels import torch_ops
from predict2_runtime.torch_networks import fused
from predict2_runtime.torch_networks import kept as what_keeps
from predict2_runtime.torch_networks.denoiser import TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.kept import Savings
from predict2_spec import networks as nets
from predict2_spec.errors import InvalidRequestError

torch.set_num_threads(1)

SPECS = {
    "picture": replace(nets.DIT_TOY_TEXT2IMAGE, num_blocks=3),
    "clip": replace(nets.DIT_TOY_VIDEO2WORLD, num_blocks=3),
    # its heads' width and its rotary scales
    "clip of the 14B": replace(
        nets.DIT_14B_VIDEO2WORLD, width=256, num_heads=2, num_blocks=2, text_width=64
    ),
}
NOTHING = Savings(shared_start=False, zero_text=False, kept=False)
ONE_EACH = {
    "shared start": replace(NOTHING, shared_start=True),
    "zero text": replace(NOTHING, zero_text=True),
    "kept": replace(NOTHING, kept=True),
    "all": Savings(),
    "row by row": replace(NOTHING, batched=False),
    "all, row by row": Savings(batched=False),
}
# Sums are taken in another order: products are packed, and a modulation is made once and not for every frame.
ORDER = {torch.float64: 1e-13, torch.float32: 1e-5}  # of outputs of about 4


@pytest.fixture
def reference(randomize):
    """From a spec and a dtype to export's module."""
    return lambda spec, dtype=torch.float64: randomize(Dit(spec)).to(dtype)


def torch_dit(dit, **options):
    return TorchDit(dit_weights(dit.spec, dit.state_dict().__getitem__), **options)


def make_inputs(spec, dtype=torch.float64, *, zero_text=True):
    """What a guided step asks: one state twice, with a prompt and with the other, which is often none."""
    generator = torch.Generator().manual_seed(1)
    frames = 3 if spec.condition_mask else 1
    text = torch.randn(2, 7, spec.text_width, generator=generator)
    text[0, 5:] = 0  # as past the end of a prompt
    if zero_text:
        text[1] = 0
    inputs = {
        "hidden_states": torch.randn(1, 16, frames, 6, 10, generator=generator).repeat(2, 1, 1, 1, 1),
        "timestep": torch.full((2, frames), 0.7),
        "encoder_hidden_states": text,
    }  # fmt: skip
    if spec.condition_mask:
        inputs["timestep"][:, :1] = 1e-4
        inputs["condition_mask"] = torch.zeros(2, 1, frames, 6, 10)
        inputs["condition_mask"][:, :, :1] = 1
    return {name: value.to(dtype) for name, value in inputs.items()}


def largest(difference):
    return difference.abs().max().item()


@pytest.mark.parametrize("saving", ONE_EACH)
@pytest.mark.parametrize("zero_text", [True, False], ids=["no prompt", "negative prompt"])
@pytest.mark.parametrize("dtype", ORDER, ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_every_saving_gives_the_modules_velocity(name, dtype, zero_text, saving, reference):
    dit = reference(SPECS[name], dtype)
    engine = torch_dit(dit, savings=ONE_EACH[saving])
    inputs = make_inputs(dit.spec, dtype, zero_text=zero_text)
    expected = dit(*inputs.values())
    assert largest(expected[0] - expected[1]) > 0.05  # or the text would say nothing
    velocity = engine(inputs)["velocity"]
    assert velocity.dtype == dtype
    assert largest(velocity - expected) < ORDER[dtype]
    assert torch.equal(engine(inputs)["velocity"], velocity)  # also with all that was kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SPECS)
def test_what_is_kept_and_the_row_without_text_are_the_same_to_the_bit(name, dtype, reference):
    dit = reference(SPECS[name], dtype)
    inputs = make_inputs(dit.spec, dtype)
    velocity = {
        key: torch_dit(dit, savings=savings)(inputs)["velocity"]
        for key, savings in {"nothing": NOTHING, **ONE_EACH}.items()
    }
    assert torch.equal(velocity["kept"], velocity["nothing"])
    # The other products are of as many rows as before; those of the row with text aren't, and may sum otherwise.
    assert torch.equal(velocity["zero text"][1], velocity["nothing"][1])


@pytest.mark.parametrize("name", SPECS)
def test_bfloat16_is_rounded_where_the_module_rounds(name, reference):
    dit = reference(SPECS[name], torch.bfloat16)
    inputs = make_inputs(dit.spec, torch.bfloat16)
    rounded = dit(*inputs.values())
    found = torch_dit(dit)(inputs)["velocity"]
    exact = dit.double()(*(value.double() for value in inputs.values()))
    # Where sums come out alike, as most do, they are equal to the bit. With one rounding more or less in every layer
    # they would be as far from each other as from the exact numbers.
    assert largest(rounded.double() - exact) > 0.01
    assert (found.double() - rounded.double()).norm() < 0.3 * (rounded.double() - exact).norm()


class Operators:
    """The kernels' operators; on the CPU they compute their references, and here refuse what they refuse on a GPU."""

    def adaln_modulate(self, x, modulation):
        torch_ops._contiguous(x, modulation)
        return torch_ops.adaln_modulate(x, modulation)

    def gated_residual_modulate(self, *tensors):
        torch_ops._contiguous(*tensors)
        return torch_ops.gated_residual_modulate(*tensors)

    def qk_norm_rope(self, q, k, weights, tables):
        assert torch_ops._row_stride(q) == torch_ops._row_stride(k) == 3 * q.shape[-1]
        torch_ops._contiguous(*weights, *tables)
        return torch_ops.qk_norm_rope(q, k, weights, tables)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("dtype", ORDER, ids=str)
def test_through_the_kernels_operators_it_is_the_same_network(name, dtype, monkeypatch, reference):
    monkeypatch.setattr(fused, "_kernels", lambda x, coded=False: Operators())
    dit = reference(SPECS[name], dtype)
    for zero_text in (True, False):
        inputs = make_inputs(dit.spec, dtype, zero_text=zero_text)
        found = torch_dit(dit)(inputs)["velocity"]
        assert largest(found - dit(*inputs.values())) < 2 * ORDER[dtype]


DIFFERENCES = {
    "latents": ("hidden_states", (1, 3, 0, 2, 2)),
    "a frame's time": ("timestep", (1, 2)),
    "the mask": ("condition_mask", (1, 0, 2, 0, 0)),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_rows_that_differ_in_one_number_share_nothing(difference, reference):
    dit = reference(SPECS["clip"])
    inputs = make_inputs(dit.spec)
    name, place = DIFFERENCES[difference]
    before = dit(*inputs.values())
    inputs[name][place] += 0.5
    expected = dit(*inputs.values())
    assert largest(expected[1] - before[1]) > 1e-4
    assert largest(torch_dit(dit)(inputs)["velocity"] - expected) < ORDER[torch.float64]


def test_any_rows_may_be_without_text(reference):
    dit = reference(SPECS["clip"])
    inputs = {name: torch.cat([v, v]) for name, v in make_inputs(dit.spec, zero_text=False).items()}
    texts = inputs["encoder_hidden_states"].clone()
    for empty in ([0], [0, 3], [1, 2], [0, 1, 2, 3]):
        inputs["encoder_hidden_states"] = texts.clone()
        inputs["encoder_hidden_states"][empty] = 0
        found = torch_dit(dit)(inputs)["velocity"]
        assert largest(found - dit(*inputs.values())) < ORDER[torch.float64]
        by_row = torch_dit(dit, savings=Savings(batched=False))(inputs)["velocity"]
        assert largest(by_row - dit(*inputs.values())) < ORDER[torch.float64]


class Counted:
    """A function, and how often it ran."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


@pytest.fixture
def counted(monkeypatch):
    """What the engine computes once, counted."""
    found = {name: Counted(getattr(what_keeps, name)) for name in ("read_text", "modulations", "rotation")}  # fmt: skip
    for name, function in found.items():
        monkeypatch.setattr(what_keeps, name, function)
    return found


def test_prompts_and_grids_are_read_once_a_generation_and_a_step_modulates_once(counted, reference):
    dit = reference(SPECS["clip"])
    engine = torch_dit(dit)
    for step in range(5):
        inputs = make_inputs(dit.spec)
        inputs["timestep"][:, 1:] = 0.9 - 0.1 * step
        engine(inputs)
    assert {name: f.calls for name, f in counted.items()} == {
        "read_text": 1,
        "modulations": 5,
        "rotation": 1,
    }
    for step in range(5):  # the next generation has the same noise levels
        inputs["timestep"][:, 1:] = 0.9 - 0.1 * step
        engine(inputs)
    assert counted["modulations"].calls == 5


def test_a_prompt_written_over_in_place_is_another_prompt(reference):
    dit = reference(SPECS["picture"])
    engine, inputs = torch_dit(dit), make_inputs(SPECS["picture"])
    for number in range(3):
        inputs["encoder_hidden_states"][0, number] += 1
        found = engine(inputs)["velocity"]
        assert largest(found - dit(*inputs.values())) < ORDER[torch.float64]


def test_two_generations_by_turns_read_their_prompts_once_and_more_than_that_stay_right(
    counted, reference
):
    dit = reference(SPECS["picture"])
    engine, inputs = torch_dit(dit), make_inputs(SPECS["picture"])
    prompts = [inputs["encoder_hidden_states"] * scale for scale in (1, 2, 3)]
    expected = [dit(*(inputs | {"encoder_hidden_states": prompt}).values()) for prompt in prompts]

    def ask(which):
        found = engine(inputs | {"encoder_hidden_states": prompts[which].clone()})["velocity"]
        assert largest(found - expected[which]) < ORDER[torch.float64]

    for which in (0, 1, 0, 1, 0, 1):
        ask(which)
    assert counted["read_text"].calls == 2
    for which in (2, 0, 1, 2):  # a third makes the others go in turn: time is lost, nothing else
        ask(which)
    assert counted["read_text"].calls == 6


def test_numbers_that_are_none_are_never_taken_for_known_ones(counted, reference):
    engine, inputs = torch_dit(reference(SPECS["picture"])), make_inputs(SPECS["picture"])
    inputs["encoder_hidden_states"][1] = torch.nan
    for calls in (1, 2):
        velocity = engine(inputs)["velocity"]
        assert velocity[0].isfinite().all()
        assert velocity[1].isnan().all()
        assert counted["read_text"].calls == calls


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timestep": (2, 2)}, r"timestep is \[2, 2\] and must be \[2, 3\]"),
        ({"encoder_hidden_states": (2, 7, 5)}, r"must be \[2, 7, 64\]"),
        ({"encoder_hidden_states": (2, 0, 64)}, "no size of them 0"),
        ({"condition_mask": (1, 1, 3, 6, 10)}, r"must be \[2, 1, 3, 6, 10\]"),
        ({"hidden_states": (2, 15, 3, 6, 10)}, r"must be \[2, 16, 3, 6, 10\]"),
        ({"hidden_states": (2, 16, 3)}, "timestep is"),
        ({"hidden_states": (2, 16, 3, 6, 9), "condition_mask": (2, 1, 3, 6, 9)}, "must be even"),
        (
            {"hidden_states": (2, 16, 3, 66, 2), "condition_mask": (2, 1, 3, 66, 2)},
            r"a grid of \[3, 33, 1\] tokens was given and the network takes \[16, 32, 32\]",
        ),
        ({"padding_mask": (1,)}, "not .*padding_mask"),
    ],
)
def test_shapes_that_the_network_does_not_take_are_refused(change, message, reference):
    inputs = make_inputs(SPECS["clip"])
    inputs |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in change.items()}
    with pytest.raises(InvalidRequestError, match=message):
        torch_dit(reference(SPECS["clip"]))(inputs)


def far(actual, expected):
    """Relative distance of an answer on a GPU."""
    return ((actual.cpu().double() - expected).norm() / expected.norm()).item()


@pytest.mark.gpu
@pytest.mark.parametrize("recorded", [0, 2])
@pytest.mark.parametrize("name", SPECS)
def test_on_a_gpu_it_is_as_near_to_float64_as_the_module_in_its_type(name, recorded, reference):
    dit = reference(SPECS[name], torch.bfloat16)
    engine = torch_dit(dit.cuda(), recorded=recorded)
    asked = [make_inputs(dit.spec, torch.bfloat16, zero_text=zero) for zero in (True, False)]
    on_gpu = [{k: v.cuda() for k, v in inputs.items()} for inputs in asked]
    rounded = [dit(*inputs.values()) for inputs in on_gpu]
    found = [engine(inputs)["velocity"] for inputs in on_gpu]
    again = [engine(inputs)["velocity"] for inputs in on_gpu]
    dit = dit.cpu().double()
    for inputs, ours, repeated, modules in zip(asked, found, again, rounded, strict=True):
        expected = dit(*(value.double() for value in inputs.values()))
        assert torch.equal(ours, repeated)
        assert far(ours, expected) < 1.2 * far(modules, expected)


@pytest.mark.gpu
def test_a_recording_is_replayed_with_the_numbers_of_each_call_and_gives_memory_of_its_own(
    reference,
):
    dit = reference(SPECS["clip"], torch.float32).cuda()
    direct, recorded = torch_dit(dit), torch_dit(dit, recorded=1)
    before = []
    for step in range(4):
        inputs = make_inputs(dit.spec, torch.float32, zero_text=step % 2 == 0)
        inputs["hidden_states"] *= 1 + step
        inputs["timestep"][:, 1:] -= 0.1 * step
        inputs = {k: v.cuda() for k, v in inputs.items()}
        expected = direct(inputs)["velocity"]
        found = recorded(inputs)["velocity"]
        assert largest(found - expected) < 1e-5
        before.append((found, expected))
    for found, expected in before:
        assert largest(found - expected) < 1e-5
