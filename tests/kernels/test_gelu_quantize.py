# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_kernels import fp8_ops
from predict2_kernels.reference import E4M3, gelu_quantize

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
GOOD = (ALIGNED, ALIGNED, ALIGNED, 3, 64, None)
RELATIVE, ABSOLUTE = 5e-6, 6e-7


def allowed(x):
    """What the kernel's own GELU may be off by, as its source says."""
    return torch.where(x.double() > -3, F.gelu(x.double()).abs() * RELATIVE, ABSOLUTE)


def hidden(*shape, device="cpu"):
    """Rows of which each has its own size, as tokens do."""
    generator = torch.Generator().manual_seed(torch.seed() % 2**32)  # fresh in every run
    sizes = torch.logspace(-2, 2, math.prod(shape[:-1])).view(*shape[:-1], 1)
    return (torch.randn(*shape, generator=generator) * sizes).to(device, torch.bfloat16)


def run(backend, x):
    codes = torch.full_like(x, math.nan).to(E4M3)
    scales = torch.full((*x.shape[:-1], 1), math.nan, device=x.device)
    pointers = [t.data_ptr() for t in (x, codes, scales)]
    backend.call("predict2_gelu_quantize", *pointers, x.numel() // x.shape[-1], x.shape[-1])
    return codes, scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_is_the_gelu_of_the_networks_mlp(assert_quantized, dtype):
    x = hidden(5, 96).to(dtype)
    codes, scales = gelu_quantize(x)
    wide = x.double()
    exact = wide / 2 * (1 + torch.erf(wide / math.sqrt(2)))
    assert_quantized(codes, scales, exact, error=1e-6 * scales.double())


def test_operator_on_the_cpu_is_its_reference_and_its_fake_has_its_shapes():
    x = hidden(2, 3, 24)
    for actual, expected in zip(fp8_ops.gelu_quantize(x), gelu_quantize(x), strict=True):
        assert torch.equal(actual, expected)
    torch_library.opcheck(fp8_ops.gelu_quantize, (x,))
    codes, scales = fp8_ops.gelu_quantize(FakeTensorMode().from_tensor(x))
    assert (codes.shape, codes.dtype) == ((2, 3, 24), E4M3)
    assert (scales.shape, scales.dtype) == ((2, 3, 1), torch.float32)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        *((i, None) for i in range(3)),
        *((i, ALIGNED + 8) for i in range(3)),
        (3, -1),
        (3, 1 << 31),
        (4, 0),
        (4, -8),
        (4, 68),  # not whole vectors
        (4, 20488),  # more than a block holds
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, index, value):
    arguments = list(GOOD)
    arguments[index] = value
    assert launchers.predict2_gelu_quantize(*arguments) == INVALID_VALUE


def test_an_empty_problem_launches_nothing(launchers):
    assert launchers.predict2_gelu_quantize(None, None, None, 0, 64, None) == 0


@pytest.mark.parametrize("shape", [(), (3, 0)])
def test_operator_refuses_what_has_no_rows(shape):
    with pytest.raises(ValueError, match="must be rows"):
        fp8_ops.gelu_quantize(torch.empty(shape))


@pytest.mark.parametrize("width", [8, 64, 4104, 8192, 8200, 20480])
@pytest.mark.parametrize("rows", [1, 3])
def test_kernel_equals_reference(backend, assert_quantized, width, rows):
    x = hidden(rows if backend.device == "cpu" else 257 * rows, width, device=backend.device)
    codes, scales = run(backend, x)
    exact = F.gelu(x.cpu().double())
    assert_quantized(codes, scales, exact, error=allowed(x.cpu()))
    expected = gelu_quantize(x.cpu())
    torch.testing.assert_close(scales.cpu(), expected[1], rtol=2 * RELATIVE, atol=ABSOLUTE)


def test_every_finite_bfloat16_has_its_gelu(backend, assert_quantized):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    octaves = torch.cat([bits[:0x7F80], bits[0x8000:0xFF80]]).view(-1, 128)  # a row each
    codes, scales = run(backend, octaves.to(backend.device))
    exact = F.gelu(octaves.double())
    assert_quantized(codes, scales, exact, error=allowed(octaves))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_has_a_scale_that_is_not(backend, bad):
    x = torch.ones(2, 64, device=backend.device, dtype=torch.bfloat16)
    x[1, 5] = bad
    codes, scales = run(backend, x)
    assert scales.isfinite().flatten().tolist() == [True, False]
    assert (codes[0].float() == 448).all()
    assert not codes[1].float().isfinite().all()


@pytest.mark.gpu
def test_operator_refuses_what_the_kernel_does_not_take():
    x = torch.randn(4, 16, device="cuda")
    with pytest.raises(ValueError, match="must be bfloat16"):
        fp8_ops.gelu_quantize(x)
    with pytest.raises(ValueError, match="not contiguous"):
        fp8_ops.gelu_quantize(x.bfloat16()[:, :8])
