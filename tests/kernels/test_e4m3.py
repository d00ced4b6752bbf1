# SPDX-License-Identifier: Apache-2.0
"""Rows as e4m3 with a scale each: the format, the definition, and the AdaLN kernels that write it."""

import ctypes
import math

import pytest
import torch
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_kernels import BFLOAT16, FLOAT, fp8_ops
from predict2_kernels.reference import (
    E4M3,
    adaln_modulate,
    adaln_modulate_e4m3,
    gated_residual,
    gated_residual_modulate_e4m3,
    quantize_rows,
)

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
ADALN = (BFLOAT16, *(ALIGNED,) * 4, 2, 3, 64, 3, None)
GATED = (BFLOAT16, *(ALIGNED,) * 7, 2, 3, 64, 3, None)
BYTES = torch.arange(256, dtype=torch.uint8)


def nearest_codes(values):
    """Of float32 values, by looking through all codes: the last bit is even where two are as near."""
    codes = BYTES[:127]  # 0 to 448
    numbers = codes.view(E4M3).double()
    above = torch.searchsorted(numbers, values.abs().double().clamp_max(448))
    below = (above - 1).clamp_min(0)
    up = numbers[above] - values.abs().double()
    down = values.abs().double() - numbers[below]
    found = torch.where((up < down) | ((up == down) & (above % 2 == 0)), codes[above], codes[below])
    found = torch.where(values.abs() > 448, 126, found)
    return found + torch.where(torch.signbit(values), 128, 0).to(torch.uint8)


def all_bfloat16s():
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16).float()
    around = [torch.nextafter(values, torch.tensor(limit)) for limit in (-math.inf, math.inf)]
    return torch.stack([values, *around])  # with the floats next to each tie


@pytest.mark.parametrize("by_eight", [False, True])
def test_stores_encode_every_bfloat16_and_its_neighbours_as_torch_does(host_library, by_eight):
    values = all_bfloat16s()
    out = torch.empty(values.shape, dtype=torch.uint8)
    count = ctypes.c_long(values.numel())
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (values, out)]
    host_library.host_store_e4m3(*pointers, count, by_eight)
    nan = values.isnan()
    assert (out[nan] & 0x7F == 0x7F).all()
    finite, found = values[~nan], out[~nan]
    assert torch.equal(found, finite.clamp(-448, 448).to(E4M3).view(torch.uint8))
    assert torch.equal(found, nearest_codes(finite))


def test_quantized_rows_are_the_nearest_codes_times_a_scale(assert_quantized):
    torch.manual_seed(0)
    u = torch.randn(5, 7, 96) * torch.logspace(-12, 12, 7)[:, None]
    codes, scales = quantize_rows(u)
    assert (codes.shape, codes.dtype) == (u.shape, E4M3)
    assert (scales.shape, scales.dtype) == ((5, 7, 1), torch.float32)
    assert (codes.float().abs().amax(-1) == 448).all()
    assert_quantized(codes, scales, u, error=0)
    expected = nearest_codes(u * (1 / scales))
    assert torch.equal(codes.view(torch.uint8), expected)


def test_rows_without_a_largest_value_stay_what_they_are():
    u = torch.zeros(4, 8)
    u[1, 3], u[2, 3], u[3] = math.nan, math.inf, 1e-30
    codes, scales = quantize_rows(u)
    assert scales.flatten()[[0, 3]].tolist() == [2.0**-64] * 2  # finite, and so is the inverse
    assert (codes[[0, 3]].float() == 0).all()
    assert scales[1].isnan()
    assert scales[2].isinf()
    assert codes[1].float().isnan().all()
    assert codes[2, 3].float().isnan()


def test_scaled_mm_takes_codes_and_scales():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 64), torch.randn(48, 64)
    (a, a_scales), (b, b_scales) = quantize_rows(x), quantize_rows(weight)
    try:
        y = torch._scaled_mm(
            a.flatten(0, 1), b.t(), a_scales.flatten(0, 1), b_scales.t(), out_dtype=torch.bfloat16
        )
    except (RuntimeError, NotImplementedError) as reason:
        pytest.skip(f"this torch has no scales by row on the CPU: {reason}")
    expected = (a.float() * a_scales).flatten(0, 1) @ (b.float() * b_scales).T
    # float32 sums, rounded to bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=2**-8, atol=1e-4)


def normal(*shape, seed=0, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def arguments(count):
    x, y = normal(2, 3, 7, 24), normal(2, 21, 24, seed=1)
    m, following = normal(2, 3, 72, seed=2), normal(2, 3, 48, seed=3)
    return (x, following) if count == 2 else (x, y, m, following)


@pytest.mark.parametrize(
    ("operator", "reference", "count"),
    [
        (fp8_ops.adaln_modulate_e4m3, adaln_modulate_e4m3, 2),
        (fp8_ops.gated_residual_modulate_e4m3, gated_residual_modulate_e4m3, 4),
    ],
)
def test_operators_on_the_cpu_are_their_references_and_fakes_have_their_shapes(
    operator, reference, count
):
    given = arguments(count)
    for actual, expected in zip(operator(*given), reference(*given), strict=True):
        assert torch.equal(actual, expected)
    torch_library.opcheck(operator, given)
    mode = FakeTensorMode()
    *total, codes, scales = operator(*(mode.from_tensor(t.bfloat16()) for t in given))
    assert [t.dtype for t in (*total, codes, scales)][-3:] == (
        [torch.bfloat16] * len(total) + [E4M3, torch.float32]
    )
    assert (codes.shape, scales.shape) == ((2, 3, 7, 24), (2, 3, 7, 1))


def test_references_quantize_what_the_plain_ones_give():
    x, y, m, following = arguments(4)
    for actual, expected in zip(
        gated_residual_modulate_e4m3(x, y, m, following),
        (total := gated_residual(x, y, m), *quantize_rows(adaln_modulate(total, following))),
        strict=True,
    ):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("operator", [fp8_ops.adaln_modulate_e4m3, fp8_ops.gated_residual_modulate_e4m3])  # fmt: skip
@pytest.mark.parametrize("fake", [False, True])
def test_operators_refuse_a_modulation_that_does_not_fit(operator, fake):
    given = list(arguments(2 if operator is fp8_ops.adaln_modulate_e4m3 else 4))
    given[-1] = given[-1][..., :24]
    if fake:
        mode = FakeTensorMode()
        given = [mode.from_tensor(t) for t in given]
    with pytest.raises(ValueError, match="doesn't fit"):
        operator(*given)


BAD_SIZES = [(0, -1), (0, 1 << 40), (1, -3), (2, 0), (2, 68), (2, 5128), (3, 1)]


@pytest.mark.parametrize(
    ("name", "good", "pointers"),
    [
        ("predict2_adaln_modulate_e4m3", ADALN, 4),
        ("predict2_gated_residual_modulate_e4m3", GATED, 7),
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, name, good, pointers):
    launcher = getattr(launchers, name)
    bad = [(0, 2), *((1 + i, value) for i in range(pointers) for value in (None, ALIGNED + 8))]
    bad += [(1 + pointers + i, value) for i, value in BAD_SIZES]
    for index, value in bad:
        given = list(good)
        given[index] = value
        assert launcher(*given) == INVALID_VALUE, (index, value)
    empty = (FLOAT, *(None,) * pointers, 2, 0, 64, 3, None)
    assert launcher(*empty) == 0


def problem(backend, width, frames, dtype):
    tokens = {"cpu": frames, "cuda": 257 if frames > 1 else 1}[backend.device]
    seed = torch.seed() % 2**32  # fresh inputs in every run

    def draw(index, *shape):
        return normal(*shape, seed=seed + index, device=backend.device, dtype=dtype)

    x, y = draw(0, frames, tokens, width) + 3, draw(1, frames, tokens, width)
    m, following = draw(2, frames, 3 * width), draw(3, frames, 2 * width)
    if frames > 1:
        following[-1] = 0  # of its tokens the largest has nothing to be divided by but the norm
        following[0, width:] = -1  # scale of -1, and a shift of 0: rows of zeros
        following[0, :width] = 0
    return x, y, m, following, (frames, tokens, width, 2)


def outputs(backend, x):
    scales = torch.full((*x.shape[:-1], 1), math.nan, device=backend.device)
    return torch.full_like(x, math.nan).to(E4M3), scales


def assert_codes_equal(backend, actual, expected):
    """On a GPU a product and a sum may be one operation in one kernel and not in the other."""
    same = (actual.view(torch.uint8) == expected.view(torch.uint8)).double().mean()
    assert same == 1 if backend.device == "cpu" else same > 0.999


@pytest.mark.parametrize("width", [8, 64, 1032, 2048, 2056, 5120])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adaln_kernel_equals_reference(backend, assert_quantized, width, frames, dtype):
    x, _, _, m, sizes = problem(backend, width, frames, dtype)
    number = FLOAT if dtype == torch.float32 else BFLOAT16
    codes, scales = outputs(backend, x)
    pointers = (x.data_ptr(), m.data_ptr())
    written = (codes.data_ptr(), scales.data_ptr())
    backend.call("predict2_adaln_modulate_e4m3", number, *pointers, *written, *sizes)
    expected = adaln_modulate(x.cpu().float(), m.cpu().float())
    if frames > 1:
        assert (scales[0].cpu() == 2.0**-64).all()
        assert (codes[0].float() == 0).all()
        codes, scales, expected = (t.cpu()[1:] for t in (codes, scales, expected))
    # float32 on both sides, in another order
    assert_quantized(codes, scales, expected, error=5e-5)
    if dtype == torch.float32:
        out = torch.empty_like(x)
        backend.call("predict2_adaln_modulate", number, *pointers, out.data_ptr(), *sizes)
        own = quantize_rows(out.cpu()[frames > 1 :])
        assert_codes_equal(backend, codes.cpu(), own[0])
        torch.testing.assert_close(scales.cpu(), own[1], rtol=2**-22, atol=0)


@pytest.mark.parametrize("width", [8, 1032, 2048, 5120])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_kernel_equals_reference(backend, assert_quantized, width, frames, dtype):
    x, y, m, following, sizes = problem(backend, width, frames, dtype)
    number = FLOAT if dtype == torch.float32 else BFLOAT16
    codes, scales = outputs(backend, x)
    total = torch.full_like(x, math.nan)
    given = [t.data_ptr() for t in (x, y, m, following)]
    written = (total.data_ptr(), codes.data_ptr(), scales.data_ptr())
    backend.call("predict2_gated_residual_modulate_e4m3", number, *given, *written, *sizes)
    expected_total = gated_residual(x.cpu(), y.cpu(), m.cpu())
    assert torch.equal(total.cpu(), expected_total)  # the same roundings: bit for bit
    codes_of_total, scales_of_total = outputs(backend, x)
    of_total = (total.data_ptr(), following.data_ptr())
    written = (codes_of_total.data_ptr(), scales_of_total.data_ptr())
    backend.call("predict2_adaln_modulate_e4m3", number, *of_total, *written, *sizes)
    assert_codes_equal(backend, codes, codes_of_total)
    torch.testing.assert_close(scales, scales_of_total, rtol=2**-22, atol=0)
    expected = adaln_modulate(expected_total.float(), following.cpu().float())
    begin = frames > 1  # rows of zeros are exact only where they are not rounded to zero
    assert_quantized(codes[begin:], scales[begin:], expected[begin:], error=5e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_a_scale_that_is_not(backend, bad):
    x, m = normal(2, 64, device=backend.device), normal(1, 128, device=backend.device)
    x[1, 5] = bad
    codes, scales = outputs(backend, x)
    pointers = [t.data_ptr() for t in (x, m, codes, scales)]
    backend.call("predict2_adaln_modulate_e4m3", FLOAT, *pointers, 1, 2, 64, 2)
    assert scales.isnan().flatten().tolist() == [False, True]
    assert codes[1].float().isnan().all()
    assert codes[0].float().isfinite().all()


@pytest.mark.gpu
def test_operators_refuse_what_is_not_contiguous():
    x, m = torch.randn(4, 16, device="cuda")[:, :8], torch.randn(2, 24, device="cuda")
    with pytest.raises(ValueError, match="not contiguous"):
        fp8_ops.adaln_modulate_e4m3(x, m)
    with pytest.raises(ValueError, match="not contiguous"):
        fp8_ops.gated_residual_modulate_e4m3(x, x, m, m)
