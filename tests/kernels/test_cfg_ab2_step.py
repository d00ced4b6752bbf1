# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_kernels import BFLOAT16, FLOAT
from predict2_kernels.reference import cfg_ab2_step
from predict2_kernels.solver_ops import cfg_ab2_step as operator
from predict2_runtime.sampler import Guidance, guided_x0, update
from predict2_runtime.schedule import flow_time, solver_steps

INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
ADDRESS = 1 << 20  # that is never read
FLOW_UNCOND = 3  # of the launcher's arguments, the one that may be null
GOOD = (BFLOAT16, *(ADDRESS,) * 8, 16, 5, 35, 2, None)


def problem(frames, num_condition, guided, dtype=torch.float64, plane=(7, 5)):
    generator = torch.Generator().manual_seed(frames)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shape = (16, frames, *plane)
    condition = normal(16, num_condition, *plane) if num_condition else None
    return (
        normal(*shape),
        normal(*shape),
        normal(*shape) if guided else None,
        normal(*shape),
        condition,
    )


def numbers(index, guidance=7.0):
    entry = solver_steps(35)[index]
    values = flow_time(entry.sigma), guidance, entry.keep, entry.now, entry.before
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("num_condition", [0, 2])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("index", [0, 7, 35])
def test_reference_is_the_samplers_step(index, guided, num_condition):
    latents, cond, uncond, previous, condition = problem(5, num_condition, guided)
    new, x0 = cfg_ab2_step(latents, cond, uncond, previous, condition, numbers(index))
    flows = np.stack([f.numpy() for f in (cond, uncond) if f is not None])
    embeds = np.zeros((1, 1))
    step = solver_steps(35)[index]
    expected = guided_x0(
        lambda *_: flows,
        latents.numpy(),
        step.sigma,
        Guidance(embeds, embeds if guided else None, 7.0),
        None if condition is None else condition.numpy(),
    )
    # float64 on both sides: only the order of additions differs
    np.testing.assert_allclose(x0.numpy(), expected, rtol=1e-12, atol=1e-12)
    moved = update(step, latents.numpy(), expected, previous.numpy())
    np.testing.assert_allclose(new.numpy(), moved, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("given", [(5, 2, True), (1, 0, False)], ids=str)
def test_the_operator_on_the_cpu_is_the_reference_and_has_its_shapes(given):
    tensors = (*problem(*given, torch.float32), numbers(7))
    for found, expected in zip(operator(*tensors), cfg_ab2_step(*tensors), strict=True):
        assert torch.equal(found, expected)
    torch_library.opcheck(operator, tensors)
    mode = FakeTensorMode()
    fakes = operator(*(None if t is None else mode.from_tensor(t) for t in tensors))
    assert [fake.shape for fake in fakes] == [tensors[0].shape] * 2


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("place", "other", "message"),
    [
        (0, torch.ones(16, 5), "latents"),
        (1, torch.ones(16, 5, 7, 4), "must be"),
        (2, torch.ones(15, 5, 7, 5), "must be"),
        (3, torch.ones(16, 4, 7, 5), "must be"),
        (4, torch.ones(16, 6, 7, 5), "isn't first frames"),
        (4, torch.ones(16, 2, 7, 4), "isn't first frames"),
        (5, torch.ones(4, dtype=torch.float64), "5 numbers in float64"),
        (5, torch.ones(5), "5 numbers in float64"),
    ],
)
def test_the_operator_refuses_what_does_not_fit(place, other, message, fake):
    given = [*problem(5, 2, True, torch.float32), numbers(7)]
    given[place] = other
    if fake:
        mode = FakeTensorMode()
        given = [mode.from_tensor(t) for t in given]
    with pytest.raises(ValueError, match=message):
        operator(*given)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 2),
        *((i, None) for i in range(1, 9) if i != FLOW_UNCOND),
        (9, -1),
        (10, -1),
        (11, -1),
        (12, -1),
        (12, 6),
        (9, 1 << 40),
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, place, value):
    arguments = list(GOOD)
    arguments[place] = value
    assert launchers.predict2_cfg_ab2_step(*arguments) == INVALID_VALUE


def test_an_empty_problem_launches_nothing(launchers):
    for sizes in ((0, 5, 35, 0), (16, 0, 35, 0), (16, 5, 0, 0)):
        assert launchers.predict2_cfg_ab2_step(FLOAT, *(None,) * 8, *sizes, None) == 0


@pytest.mark.parametrize("frames", [1, 3, 24])
@pytest.mark.parametrize("num_condition", [0, 1])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_equals_reference(backend, frames, num_condition, guided, dtype):
    latents, cond, uncond, previous, condition = problem(frames, num_condition, guided, torch.float32)  # fmt: skip
    # the network's answers are of its own type; the reference gets the same rounded values
    cond, uncond = (None if t is None else t.to(dtype) for t in (cond, uncond))
    tensors = (latents, cond, uncond, previous, condition, numbers(7))
    expected, expected_x0 = cfg_ab2_step(*tensors)
    placed = [None if t is None else t.to(backend.device) for t in tensors]
    out, x0 = (torch.full_like(placed[0], torch.nan) for _ in range(2))

    def run(into):
        pointers = [None if t is None else t.data_ptr() for t in (*placed, into, x0)]
        number = FLOAT if dtype == torch.float32 else BFLOAT16
        backend.call("predict2_cfg_ab2_step", number, *pointers, 16, frames, 35, num_condition)

    run(out)
    # float32 products of size ~10 with a fused multiply-add: a few ulps of 1e-6
    torch.testing.assert_close(x0.cpu(), expected_x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-5, atol=1e-5)
    run(placed[0])
    assert torch.equal(placed[0], out)  # in place


def test_the_numbers_of_a_step_are_read_when_it_runs(backend):
    latents, cond, uncond, previous, _ = problem(2, 0, True, torch.float32)
    step = numbers(0).to(backend.device)
    placed = [t.to(backend.device) for t in (latents, cond, uncond, previous)]
    out, x0 = (torch.empty_like(placed[0]) for _ in range(2))
    arrays = (*placed, None, step, out, x0)
    pointers = [None if t is None else t.data_ptr() for t in arrays]
    for index, guidance in ((7, 4.0), (35, 0.0)):
        step.copy_(numbers(index, guidance))
        backend.call("predict2_cfg_ab2_step", FLOAT, *pointers, 16, 2, 35, 0)
        expected = cfg_ab2_step(latents, cond, uncond, previous, None, numbers(index, guidance))
        torch.testing.assert_close(out.cpu(), expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_the_operator_on_a_gpu_is_the_reference_and_takes_what_lies_as_the_kernel_reads_it():
    tensors = (*problem(5, 2, True, torch.float32), numbers(7))
    placed = [t.cuda() for t in tensors]
    for found, expected in zip(operator(*placed), cfg_ab2_step(*tensors), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="not contiguous"):
        operator(placed[0].mT.contiguous().mT, *placed[1:])
    with pytest.raises(ValueError, match="must be float32"):
        operator(placed[0], *placed[1:3], placed[3].double(), *placed[4:])
