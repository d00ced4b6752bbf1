# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from predict2_kernels import KernelError, check, library
from predict2_kernels.reference import SolverStep, cfg_ab2_step
from predict2_runtime.sampler import Guidance, guided_x0, update
from predict2_runtime.schedule import flow_time, solver_steps

needs_library = pytest.mark.skipif(library() is None, reason="built without nvcc")


def problem(frames, num_condition, guided, dtype=torch.float64):
    generator = torch.Generator().manual_seed(frames)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    shape = (16, frames, 35)
    condition = normal(16, num_condition, 35) if num_condition else None
    return (
        normal(*shape),
        normal(*shape),
        normal(*shape) if guided else None,
        normal(*shape),
        condition,
    )


def solver_step(index, guidance=7.0):
    entry = solver_steps(35)[index]
    return SolverStep(flow_time(entry.sigma), guidance, entry.keep, entry.now, entry.before)


@pytest.mark.parametrize("num_condition", [0, 2])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("index", [0, 7, 35])
def test_reference_is_the_samplers_step(index, guided, num_condition):
    latents, cond, uncond, previous, condition = problem(5, num_condition, guided)
    new, x0 = cfg_ab2_step(latents, cond, uncond, previous, condition, solver_step(index))

    def square(x):
        return None if x is None else x.numpy()[..., None]

    flows = np.stack([square(f) for f in (cond, uncond) if f is not None])
    embeds = np.zeros((1, 1))
    expected = guided_x0(
        lambda *_: flows,
        square(latents),
        solver_steps(35)[index].sigma,
        Guidance(embeds, embeds if guided else None, 7.0),
        square(condition),
    )
    # float64 on both sides: only the order of additions differs
    np.testing.assert_allclose(x0.numpy(), expected[..., 0], rtol=1e-12, atol=1e-12)
    moved = update(solver_steps(35)[index], square(latents), expected, square(previous))
    np.testing.assert_allclose(new.numpy(), moved[..., 0], rtol=1e-12, atol=1e-12)


def call(pointers, sizes, step):
    values = (step.time, step.guidance, step.keep, step.now, step.before)
    check(library().predict2_cfg_ab2_step(*pointers, *sizes, *values, None))


@needs_library
@pytest.mark.parametrize("sizes", [(16, 5, 35, 6), (16, 5, 35, -1), (-1, 5, 35, 0), (16, 5, 35, 0)])
def test_bad_arguments_are_refused_before_a_launch(sizes):
    with pytest.raises(KernelError, match="cudaErrorInvalidValue"):
        call([None] * 6, sizes, solver_step(0))


@needs_library
def test_an_empty_problem_launches_nothing():
    call([None] * 6, (16, 0, 35, 0), solver_step(0))


@needs_library
@pytest.mark.gpu
@pytest.mark.parametrize("frames", [1, 3, 24])
@pytest.mark.parametrize("num_condition", [0, 1])
@pytest.mark.parametrize("guided", [True, False])
def test_kernel_equals_reference(frames, num_condition, guided):
    tensors = [None if t is None else t.float() for t in problem(frames, num_condition, guided)]
    latents, cond, uncond, previous, condition = tensors
    # the network answers in bf16; the reference gets the same rounded values
    cond, uncond = (None if t is None else t.bfloat16() for t in (cond, uncond))
    step = solver_step(7)
    expected, expected_x0 = cfg_ab2_step(latents, cond, uncond, previous, condition, step)
    on_gpu = [None if t is None else t.cuda() for t in (latents, cond, uncond, previous, condition)]
    x0 = torch.empty_like(on_gpu[0])
    pointers = [None if t is None else t.data_ptr() for t in (*on_gpu, x0)]
    call(pointers, (16, frames, 35, num_condition), step)
    torch.cuda.synchronize()
    # float32 products of size ~10 with a fused multiply-add: a few ulps of 1e-6
    torch.testing.assert_close(x0.cpu(), expected_x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(on_gpu[0].cpu(), expected, rtol=1e-5, atol=1e-5)
