# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_export.networks import fused
from predict2_kernels import BFLOAT16, FLOAT
from predict2_kernels.reference import adaln_modulate
from predict2_kernels.torch_ops import adaln_modulate as operator

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
GOOD = (BFLOAT16, ALIGNED, ALIGNED, ALIGNED, 2, 3, 64, 3, None)


def normal(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("count", [2, 3])
def test_reference_is_the_networks_modulation(count):
    x, m = normal(2, 3, 7, 24) + 5, normal(2, 3, count * 24)
    expected = fused.adaln_modulate(x, m)
    # float64 on both sides: only the order of operations differs
    torch.testing.assert_close(adaln_modulate(x, m), expected, rtol=1e-12, atol=1e-12)
    flat = adaln_modulate(x.flatten(1, 2), m[:, :, None])
    torch.testing.assert_close(flat.view_as(expected), expected, rtol=1e-12, atol=1e-12)


def test_operator_on_the_cpu_is_its_reference_and_its_fake_has_its_shape():
    arguments = normal(2, 3, 7, 24, dtype=torch.float32), normal(2, 3, 72, dtype=torch.float32)
    assert torch.equal(operator(*arguments), adaln_modulate(*arguments))
    torch_library.opcheck(operator, arguments)
    with FakeTensorMode():
        x = torch.empty(1, 24, 1560, 2048, dtype=torch.bfloat16)
        out = operator(x, torch.empty(1, 24, 1, 6144, dtype=torch.bfloat16))
        assert (out.shape, out.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 2),
        (1, None),
        (2, None),
        (3, None),
        (1, ALIGNED + 8),
        (2, ALIGNED + 4),
        (3, ALIGNED + 2),
        (4, -1),
        (5, -3),
        (4, 1 << 40),
        (6, 0),
        (6, 68),  # not whole vectors
        (6, 5128),  # more than a block holds
        (7, 1),  # no scale
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, index, value):
    arguments = list(GOOD)
    arguments[index] = value
    assert launchers.predict2_adaln_modulate(*arguments) == INVALID_VALUE


@pytest.mark.parametrize("sizes", [(0, 3), (2, 0)])
def test_an_empty_problem_launches_nothing(launchers, sizes):
    assert launchers.predict2_adaln_modulate(BFLOAT16, None, None, None, *sizes, 64, 3, None) == 0


@pytest.mark.parametrize(
    ("x", "modulation", "message"),
    [
        (torch.empty(4, 8), torch.empty(2, 24, dtype=torch.bfloat16), "all be"),
        (torch.empty(4, 8).half(), torch.empty(2, 24).half(), "all be"),
        (torch.empty(8, 4).mT, torch.empty(2, 24), "not contiguous"),
        (torch.empty(4, 8), torch.empty(3, 24), "doesn't fit"),
        (torch.empty(4, 8), torch.empty(2, 8), "doesn't fit"),
        (torch.empty(4, 8), torch.empty(2, 20), "doesn't fit"),
        (torch.empty(4, 8), torch.empty(0, 24), "doesn't fit"),  # no frame for the rows
    ],
)
def test_operator_refuses_tensors_that_the_kernel_does_not_take(x, modulation, message):
    from predict2_kernels.torch_ops import _dtype, _frames

    with pytest.raises(ValueError, match=message):
        _dtype(x, modulation), _frames(x, modulation, 2)


@pytest.mark.parametrize("width", [8, 64, 1032, 2048, 2056, 5120])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_equals_reference(backend, width, frames, dtype):
    torch.manual_seed(torch.seed())  # fresh inputs in every run
    tokens = {("cpu", 1): 1, ("cpu", 3): 2, ("cuda", 1): 1, ("cuda", 3): 257}[
        backend.device, frames
    ]
    x = (torch.randn(frames, tokens, width, device=backend.device) + 3).to(dtype)
    m = torch.randn(frames, 3 * width, device=backend.device).to(dtype)
    out = torch.full_like(x, math.nan)
    pointers = (x.data_ptr(), m.data_ptr(), out.data_ptr())
    number = FLOAT if dtype == torch.float32 else BFLOAT16
    sizes = (frames, tokens, width, 3)
    backend.call("predict2_adaln_modulate", number, *pointers, *sizes)
    expected = adaln_modulate(x.cpu().float(), m.cpu().float())
    # one rounding of the result, half a step of 2^-8 in bf16; the rest is float32 on both sides
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.cpu().float(), expected, rtol=rtol, atol=5e-5)
    backend.call("predict2_adaln_modulate", number, *pointers[:2], x.data_ptr(), *sizes)
    assert torch.equal(x, out)  # in place


@pytest.mark.gpu
def test_operator_refuses_what_is_not_contiguous():
    x, m = torch.randn(4, 16, device="cuda"), torch.randn(2, 24, device="cuda")
    with pytest.raises(ValueError, match="not contiguous"):
        operator(x[:, :8], m)
