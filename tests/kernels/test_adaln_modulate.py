# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_export.networks.dit import modulate, parts
from predict2_kernels import BFLOAT16, FLOAT, KernelError, check, library
from predict2_kernels.reference import adaln_modulate
from predict2_kernels.torch_ops import adaln_modulate as operator

needs_library = pytest.mark.skipif(
    not hasattr(library(), "predict2_adaln_modulate"), reason="built without nvcc, or before it"
)
ALIGNED = 1 << 20  # an address that is never read
GOOD = (BFLOAT16, ALIGNED, ALIGNED, ALIGNED, 2, 3, 64, 3, None)


def normal(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("count", [2, 3])
def test_reference_is_the_networks_modulation(count):
    x, m = normal(2, 3, 7, 24) + 5, normal(2, 3, count * 24)
    shift, scale = parts(m[:, :, None], count)[:2]
    expected = modulate(x, shift, scale)
    # float64 on both sides: only the order of operations differs
    torch.testing.assert_close(adaln_modulate(x, m), expected, rtol=1e-12, atol=1e-12)
    flat = adaln_modulate(x.flatten(1, 2), m[:, :, None])
    torch.testing.assert_close(flat.view_as(expected), expected, rtol=1e-12, atol=1e-12)


def test_operator_on_the_cpu_is_its_reference_and_its_fake_has_its_shape():
    arguments = normal(2, 3, 7, 24, dtype=torch.float32), normal(2, 3, 72, dtype=torch.float32)
    assert torch.equal(operator(*arguments), adaln_modulate(*arguments))
    torch.library.opcheck(operator, arguments)
    with FakeTensorMode():
        x = torch.empty(1, 24, 1560, 2048, dtype=torch.bfloat16)
        out = operator(x, torch.empty(1, 24, 1, 6144, dtype=torch.bfloat16))
        assert (out.shape, out.dtype) == (x.shape, x.dtype)


@needs_library
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
def test_bad_arguments_are_refused_before_a_launch(index, value):
    arguments = list(GOOD)
    arguments[index] = value
    with pytest.raises(KernelError, match="cudaErrorInvalidValue"):
        check(library().predict2_adaln_modulate(*arguments))


@needs_library
@pytest.mark.parametrize("sizes", [(0, 3), (2, 0)])
def test_an_empty_problem_launches_nothing(sizes):
    check(library().predict2_adaln_modulate(BFLOAT16, None, None, None, *sizes, 64, 3, None))


@pytest.mark.parametrize(
    ("x", "modulation", "message"),
    [
        (torch.empty(4, 8), torch.empty(2, 24, dtype=torch.bfloat16), "all be"),
        (torch.empty(4, 8).half(), torch.empty(2, 24).half(), "all be"),
        (torch.empty(8, 4).mT, torch.empty(2, 24), "not contiguous"),
        (torch.empty(4, 8), torch.empty(3, 24), "doesn't fit"),
        (torch.empty(4, 8), torch.empty(2, 8), "doesn't fit"),
        (torch.empty(4, 8), torch.empty(2, 20), "doesn't fit"),
    ],
)
def test_operator_refuses_tensors_that_the_kernel_does_not_take(x, modulation, message):
    from predict2_kernels.torch_ops import _dtype, _frames

    with pytest.raises(ValueError, match=message):
        _dtype(x, modulation), _frames(x, modulation, 2)


@needs_library
@pytest.mark.gpu
@pytest.mark.parametrize("width", [8, 64, 1032, 2048, 2056, 5120])
@pytest.mark.parametrize(("frames", "tokens"), [(1, 1), (6, 257)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_equals_reference(width, frames, tokens, dtype):
    torch.manual_seed(torch.seed())  # fresh inputs in every run
    x = (torch.randn(frames, tokens, width, device="cuda") + 3).to(dtype)
    m = torch.randn(frames, 3 * width, device="cuda").to(dtype)
    out = torch.full_like(x, math.nan)
    pointers = (x.data_ptr(), m.data_ptr(), out.data_ptr())
    number = FLOAT if dtype == torch.float32 else BFLOAT16
    stream = torch.cuda.current_stream().cuda_stream
    check(library().predict2_adaln_modulate(number, *pointers, frames, tokens, width, 3, stream))
    expected = adaln_modulate(x.cpu().float(), m.cpu().float())
    # one rounding of the result, half a step of 2^-8 in bf16; the rest is float32 on both sides
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.cpu().float(), expected, rtol=rtol, atol=5e-5)
    check(library().predict2_adaln_modulate(number, pointers[0], pointers[1], pointers[0], frames, tokens, width, 3, stream))  # fmt: skip
    torch.cuda.synchronize()
    assert torch.equal(x, out)  # in place


@needs_library
@pytest.mark.gpu
def test_operator_refuses_what_is_not_contiguous():
    x, m = torch.randn(4, 16, device="cuda"), torch.randn(2, 24, device="cuda")
    with pytest.raises(ValueError, match="not contiguous"):
        operator(x[:, :8], m)
