# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_export.networks.vae import Caches, CausalConv3d, Chain, RmsNorm
from predict2_kernels import BFLOAT16, FLOAT
from predict2_kernels.reference import rms_silu
from predict2_kernels.vae_ops import _run, _stride
from predict2_kernels.vae_ops import rms_silu as operator
from predict2_kernels.vae_ops import rms_silu_into as operator_into

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
GOOD = (BFLOAT16, ALIGNED, ALIGNED, ALIGNED, 2, 5, 96, 480, 1, None)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def clip(batch, channels, *size, **options):
    """[B, C, ...] with its channels last in memory."""
    return normal(batch, *size, channels, **options).movedim(-1, 1)


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("size", [(3, 2, 5), (4, 7)])
def test_reference_is_the_networks_norm(silu, size):
    x = clip(2, 24, *size)
    x[0, :, 0, 1] = 0
    x[1, :, 0, 1] *= 1e-14  # where 1e-12 counts
    norm = RmsNorm(24, dims=len(size)).double()
    torch.nn.init.normal_(norm.gamma)
    expected = F.silu(norm(x)) if silu else norm(x)
    # float64 on both sides: only the order of operations differs
    actual = rms_silu(x, norm.gamma, silu)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


def test_operators_on_the_cpu_are_their_reference_and_fakes_have_their_shapes():
    gamma = normal(24, 1, 1, 1, seed=1, dtype=torch.float32)
    for x in (clip(2, 24, 3, 2, 5, dtype=torch.float32), normal(1, 24, 4, 3, dtype=torch.float32)):
        for silu in (True, False):
            expected = rms_silu(x, gamma, silu)
            assert torch.equal(operator(x, gamma, silu), expected)
            out = torch.empty_like(x)
            operator_into(x, gamma, out, silu)
            assert torch.equal(out, expected)
        torch_library.opcheck(operator, (x, gamma))
        torch_library.opcheck(operator_into, (x, gamma, torch.empty_like(x)))
        mode = FakeTensorMode()
        fake = operator(mode.from_tensor(x), mode.from_tensor(gamma))
        assert (fake.shape, fake.stride()) == (x.shape, x.stride())


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("x", "gamma", "out", "message"),
    [
        ((2, 24, 3), (16,), (2, 24, 3), "doesn't fit"),
        ((2, 24), (24,), (2, 24), "doesn't fit"),
        ((2, 0, 3), (0,), (2, 0, 3), "doesn't fit"),
        ((2, 24, 3), (24,), (2, 24, 4), "must be like x"),
    ],
)
def test_operators_refuse_shapes_that_do_not_fit(x, gamma, out, message, fake):
    given = [torch.ones(shape) for shape in (x, gamma, out)]
    if fake:
        mode = FakeTensorMode()
        given = [mode.from_tensor(t) for t in given]
    with pytest.raises(ValueError, match=message):
        operator_into(*given)
    if x == out:
        with pytest.raises(ValueError, match=message):
            operator(*given[:2])


@pytest.mark.parametrize("name", ["x", "out"])
def test_kernel_refuses_another_layout(name):
    gamma, last = torch.ones(8), clip(2, 8, 3, 4, dtype=torch.float32)
    given = {"x": last, "out": last, name: last.contiguous()}
    with pytest.raises(ValueError, match=r"channels last in memory|not contiguous"):
        _run(given["x"], gamma, given["out"], True)


def test_an_item_may_be_the_later_frames_of_a_longer_one():
    ring = torch.empty(2, 5, 4, 3, 8).movedim(-1, 1)  # [B, C, T, H, W]
    assert _stride("out", ring[:, :, 2:]) == 5 * 4 * 3 * 8
    assert _stride("out", ring[:1, :, 2:]) == 3 * 4 * 3 * 8
    for wrong in (ring[:, :, ::2], ring[..., 1:], ring[:, 1:], ring[:1, :, 2:].expand(2, 8, 3, 4, 3)):  # fmt: skip
        with pytest.raises(ValueError, match="channels last in memory"):
            _stride("out", wrong)


def test_a_causal_convolution_reads_what_was_written_behind_the_frames_it_kept():
    torch.manual_seed(0)
    norm, conv = RmsNorm(8, dims=3).double(), CausalConv3d(8, 4).double()
    chain, past, kept = (
        Chain(norm, torch.nn.SiLU(), conv),
        None,
        torch.zeros(2, 8, 2, 5, 3).double(),
    )
    for index, frames in enumerate((1, 4, 4)):
        x = clip(2, 8, frames, 5, 3, seed=index)
        caches = Caches(past)
        with torch.no_grad():
            expected, past = chain(x, caches), caches.kept
        ring = torch.empty(2, 2 + frames, 5, 3, 8, dtype=torch.float64).movedim(-1, 1)
        ring[:, :, :2] = kept
        operator_into(x, norm.gamma.detach(), ring[:, :, 2:])
        actual = F.conv3d(ring, conv.weight, conv.bias, padding=(0, 1, 1))
        # float64 on both sides: only the order of operations differs
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
        kept = ring[:, :, -2:]


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (0, 2),
        *((i, None) for i in range(1, 4)),
        *((i, ALIGNED + 8) for i in range(1, 4)),
        (4, -1),
        (4, 1 << 31),
        (5, -3),
        (5, 1 << 40),
        (6, 0),
        (6, 92),  # not whole vectors
        (6, 1032),  # more than a warp holds
        (7, 472),  # items that overlap
        (7, 484),  # items that are not aligned
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, index, value):
    arguments = list(GOOD)
    arguments[index] = value
    assert launchers.predict2_rms_silu(*arguments) == INVALID_VALUE


@pytest.mark.parametrize("sizes", [(0, 5), (2, 0)])
def test_an_empty_problem_launches_nothing(launchers, sizes):
    arguments = (FLOAT, None, None, None, *sizes, 96, 480, 1, None)
    assert launchers.predict2_rms_silu(*arguments) == 0


def run(backend, x, gamma, out, silu):
    """x [B, ..., C] and out, whose items may be parts of longer ones."""
    number = FLOAT if x.dtype == torch.float32 else BFLOAT16
    sizes = (x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1], out.stride(0))
    pointers = [t.data_ptr() for t in (x, gamma, out)]
    backend.call("predict2_rms_silu", number, *pointers, *sizes, silu)


@pytest.mark.parametrize("channels", [8, 96, 128, 136, 192, 384, 520, 1024])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_equals_reference(backend, channels, silu, dtype):
    seed = torch.seed() % 2**32  # fresh inputs in every run
    side = 5 if backend.device == "cpu" else 67
    x = (normal(2, 3, side, 7, channels, seed=seed) * 5 + 1).to(backend.device, dtype)
    gamma = (normal(channels, seed=seed + 1) * 3).to(backend.device, dtype)
    frames = torch.full((2, 5, side, 7, channels), math.nan, device=backend.device, dtype=dtype)
    run(backend, x, gamma, frames[:, 2:], silu)
    assert frames[:, :2].isnan().all()  # the frames before are another's
    out = frames[:, 2:].cpu()
    expected = rms_silu(x.cpu().double().movedim(-1, 1), gamma.cpu().double(), silu).movedim(1, -1)
    # one rounding of the result, half a step of 2^-8 in bf16; the rest in float32
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), expected, rtol=rtol, atol=1e-6)
    run(backend, x, gamma, x, silu)
    assert torch.equal(x.cpu(), out)  # in place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_at_the_limits(backend, dtype):
    x = normal(5, 96, seed=3).to(dtype)
    x[0], x[2, 7] = 0, math.nan
    x[1] *= 1e-14  # where 1e-12 counts
    x[3] = 0
    x[3, 4:6] = torch.tensor([300.0, -300.0])  # n is about +-7, times gamma
    gamma = torch.full((96,), 20.0, dtype=dtype)
    out = torch.full_like(x, 7.0).to(backend.device)
    given = x.to(backend.device), gamma.to(backend.device)
    run(backend, given[0][None], given[1], out[None], True)
    expected = rms_silu(x.double().mT[None], gamma.double(), True)[0].mT
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.cpu().double(), expected, rtol=rtol, atol=1e-6, equal_nan=True)
    assert out.isnan().all(-1).tolist() == [False, False, True, False, False]
    assert (out[0] == 0).all()


@pytest.mark.gpu
def test_operators_run_on_channels_last():
    x = clip(2, 96, 3, 5, 7, dtype=torch.float32)
    gamma = normal(96, 1, 1, 1, seed=1, dtype=torch.float32)
    ring = torch.zeros(2, 5, 5, 7, 96, device="cuda").movedim(-1, 1)
    operator_into(x.cuda(), gamma.cuda(), ring[:, :, 2:])
    actual = operator(x.cuda(), gamma.cuda())
    torch.testing.assert_close(actual.cpu(), operator(x, gamma), rtol=1e-5, atol=1e-6)
    assert actual.stride() == x.stride()
    assert torch.equal(ring[:, :, 2:], actual)
    with pytest.raises(ValueError, match="not contiguous"):
        operator(x.cuda().contiguous(), gamma.cuda())
