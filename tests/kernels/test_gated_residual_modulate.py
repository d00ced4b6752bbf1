# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_export.networks import fused
from predict2_kernels import BFLOAT16, FLOAT
from predict2_kernels.reference import adaln_modulate, gated_residual, gated_residual_modulate
from predict2_kernels.torch_ops import gated_residual as operator_add
from predict2_kernels.torch_ops import gated_residual_modulate as operator

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
GOOD = (BFLOAT16, *(ALIGNED,) * 6, 2, 3, 64, 3, None)


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def problem(dtype, next_parts=3):
    shape = (2, 3, 7, 24)
    x, y = normal(*shape, dtype=dtype), normal(2, 21, 24, dtype=dtype, seed=1)
    m, following = (
        normal(2, 3, count * 24, dtype=dtype, seed=seed)
        for count, seed in ((3, 2), (next_parts, 3))
    )
    return x, y, m, following


@pytest.mark.parametrize("next_parts", [2, 3])
def test_reference_is_the_networks_sub_layers_end(next_parts):
    x, y, m, following = problem(torch.float64, next_parts)
    total, expected = fused.gated_residual_modulate(x, y, m, following)
    actual = gated_residual_modulate(x, y, m, following)
    torch.testing.assert_close(actual[0], total, rtol=0, atol=0)
    # float64 on both sides: only the order of operations differs
    torch.testing.assert_close(actual[1], expected, rtol=1e-12, atol=1e-12)


def test_residual_is_rounded_where_the_network_rounds_it():
    x, y, m, _ = problem(torch.bfloat16)
    expected = x + fused.parts(m[:, :, None], 3)[2] * y.view_as(x)
    assert torch.equal(gated_residual(x, y, m), expected)
    product = (m.view(2, 3, 1, 72)[..., 48:].float() * y.view_as(x).float()).bfloat16()
    assert torch.equal(expected, (x.float() + product.float()).bfloat16())


def test_operators_on_the_cpu_are_their_references_and_fakes_have_their_shapes():
    arguments = problem(torch.float32)
    for actual, expected in zip(operator(*arguments), gated_residual_modulate(*arguments), strict=True):  # fmt: skip
        assert torch.equal(actual, expected)
    assert torch.equal(operator_add(*arguments[:3]), gated_residual(*arguments[:3]))
    torch_library.opcheck(operator, arguments)
    torch_library.opcheck(operator_add, arguments[:3])
    with FakeTensorMode():
        x = torch.empty(1, 3, 5, 64, dtype=torch.bfloat16)
        m = torch.empty(1, 3, 192, dtype=torch.bfloat16)
        assert [t.shape for t in operator(x, x, m, m)] == [x.shape, x.shape]


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, -1),
        *((i, None) for i in range(1, 7)),
        *((i, ALIGNED + 8) for i in range(1, 7)),
        (7, -1),
        (8, -3),
        (7, 1 << 40),
        (9, 0),
        (9, 68),  # not whole vectors
        (9, 5128),  # more than a block holds
        (10, 1),  # no scale
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, index, value):
    arguments = list(GOOD)
    arguments[index] = value
    assert launchers.predict2_gated_residual_modulate(*arguments) == INVALID_VALUE
    if index in (0, 1, 2, 3, 7, 8, 9):
        short = (*arguments[:4], ALIGNED, *arguments[7:10], None)
        assert launchers.predict2_gated_residual(*short) == INVALID_VALUE


def test_an_empty_problem_launches_nothing(launchers):
    assert launchers.predict2_gated_residual_modulate(FLOAT, *(None,) * 6, 0, 3, 64, 3, None) == 0
    assert launchers.predict2_gated_residual(FLOAT, *(None,) * 4, 2, 0, 64, None) == 0


@pytest.mark.parametrize("shapes", [((2, 24), (4, 16)), ((2, 16), (4, 8)), ((2, 24), (2, 8))])
def test_operator_refuses_shapes_that_do_not_fit(shapes):
    from predict2_kernels.torch_ops import _gated

    with pytest.raises(ValueError, match="fit"):
        _gated(torch.empty(4, 8), torch.empty(shapes[1]), torch.empty(shapes[0]))


@pytest.mark.parametrize("width", [8, 64, 1032, 2048, 2056, 5120])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_equals_reference(backend, width, frames, dtype):
    torch.manual_seed(torch.seed())  # fresh inputs in every run
    tokens = {("cpu", 1): 1, ("cpu", 3): 2, ("cuda", 1): 1, ("cuda", 3): 257}[
        backend.device, frames
    ]

    def normal(*shape):
        return torch.randn(*shape, device=backend.device).to(dtype)

    x, y = (normal(frames, tokens, width) for _ in range(2))
    m, following = normal(frames, 3 * width), normal(frames, 2 * width)
    total, out, alone = (torch.full_like(x, math.nan) for _ in range(3))
    number = FLOAT if dtype == torch.float32 else BFLOAT16
    sizes = (frames, tokens, width)
    pointers = [t.data_ptr() for t in (x, y, m, following, total, out)]
    backend.call("predict2_gated_residual_modulate", number, *pointers, *sizes, 2)
    backend.call("predict2_gated_residual", number, *pointers[:3], alone.data_ptr(), *sizes)
    expected_total = gated_residual(x.cpu(), y.cpu(), m.cpu())
    assert torch.equal(total.cpu(), expected_total)  # the same roundings: bit for bit
    assert torch.equal(alone, total)
    expected = adaln_modulate(expected_total.float(), following.cpu().float())
    # one rounding of the result, half a step of 2^-8 in bf16; the rest is float32 on both sides
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.cpu().float(), expected, rtol=rtol, atol=2e-5)
    backend.call("predict2_gated_residual", number, *pointers[:3], x.data_ptr(), *sizes)
    assert torch.equal(x, total)  # in place


@pytest.mark.gpu
def test_operators_refuse_what_is_not_contiguous():
    x, m = torch.randn(4, 8, device="cuda"), torch.randn(2, 24, device="cuda")
    strided = torch.randn(4, 16, device="cuda")[:, :8]
    for arguments in ((x, strided, m), (strided, x, m)):
        with pytest.raises(ValueError, match="not contiguous"):
            operator_add(*arguments)
        with pytest.raises(ValueError, match="not contiguous"):
            operator(*arguments, m)
