# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from predict2_kernels import E4M3, INT8, reference

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue
CHANNELS = (22, 21, 21)  # of frames, rows and columns, as in the networks
CODES = {torch.int8: INT8, reference.E4M3: E4M3}
POISON = 0x7F  # 127, or a NaN of e4m3
GUARD = 64  # bytes behind an output that nobody may write
EPS = 1e-6  # of the norm
# float32 up to the rounding to codes: some ten roundings, and a sum of 128 squares
ARITHMETIC = 2e-6


def tables(grid, device="cpu"):
    angles = [torch.rand(n, c) * 6 for n, c in zip(grid, CHANNELS, strict=True)]
    return [torch.stack([a.cos(), a.sin()]).to(device) for a in angles]


def packed(batch, tokens, heads, device="cpu"):
    """Queries, keys and values in one tensor, each token of its own size; and the norms' weights."""
    sizes = torch.logspace(-2, 2, tokens)[:, None]
    qkv = (torch.randn(batch, tokens, 3 * heads * 128) * sizes).to(device, torch.bfloat16)
    weights = [torch.randn(128).to(device, torch.bfloat16) for _ in range(2)]
    return qkv.chunk(3, dim=-1), weights


def exact(x, weight, turns, grid):
    """Norm and rotation in float64, the pairs of channels as complex numbers: [B, heads, N, 128]."""
    heads = x.cpu().double().unflatten(-1, (-1, 128))
    normed = heads / (heads.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.cpu().double()
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).T
    turn = torch.cat(
        [torch.complex(*t.cpu().double())[at] for t, at in zip(turns, places, strict=True)], dim=-1
    )
    turned = torch.complex(normed[..., :64], normed[..., 64:]) * turn[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1).movedim(1, 2)


class Output:
    """Bytes that a kernel has to write, all of them and no others."""

    def __init__(self, shape, dtype, device):
        size = math.prod(shape) * dtype.itemsize
        self.bytes = torch.full((size + GUARD,), POISON, dtype=torch.uint8, device=device)
        self.tensor = self.bytes[:size].view(dtype).view(shape)

    def read(self):
        assert (self.bytes[-GUARD:] == POISON).all()
        return self.tensor.cpu()


def pointer(tensor):
    return None if tensor is None else tensor.data_ptr()


def run_qk(backend, dtype, qk, weights, rotation, q_scale=1.0, shift=None, order=None):
    """Codes and scales of the queries, and of the keys; a rotation is tables and their grid."""
    (q, k), (of_tables, grid) = qk, rotation
    (batch, tokens, width), heads = q.shape, q.shape[2] // 128
    shape = (batch, heads, tokens)
    of_q, of_k = (
        [Output((*shape, 128), dtype, q.device), Output(shape, torch.float32, q.device)]
        for _ in range(2)
    )
    backend.call(
        "predict2_qk_prep",
        *(CODES[dtype], *(t.data_ptr() for t in (q, k, *weights)), pointer(shift)),
        *(*(t.data_ptr() for t in of_tables), pointer(order)),
        *(out.tensor.data_ptr() for out in (*of_q, *of_k)),
        *(batch, tokens, heads, 3 * width, 3 * width, *grid, *CHANNELS, q_scale),
    )
    return [out.read() for out in of_q], [out.read() for out in of_k]


def run_v_scales(backend, v):
    batch, tokens, width = v.shape
    out = Output((batch, width // 128, 128), torch.float32, v.device)
    sizes = (batch, tokens, width // 128, 3 * width)
    backend.call("predict2_v_scales", v.data_ptr(), out.tensor.data_ptr(), *sizes)
    return out.read()


def run_v(backend, v, scales, order=None):
    batch, tokens, width = v.shape
    heads = width // 128
    out = Output((batch, heads, 128, -(-tokens // 16) * 16), reference.E4M3, v.device)
    pointers = (v.data_ptr(), scales.data_ptr(), pointer(order), out.tensor.data_ptr())
    backend.call("predict2_v_prep", *pointers, batch, tokens, heads, 3 * width)
    return out.read()


def transposed(v):
    return v.cpu().unflatten(-1, (-1, 128)).movedim(1, -1)


@pytest.fixture(scope="session")
def assert_coded(assert_quantized):
    """Asserts that codes * scales is u [..., D] to within half a step, where u is known to within `error`."""

    def check(codes, scales, u, error):
        if codes.dtype != torch.int8:
            assert_quantized(codes, scales, u, error)
            return
        scales, largest = scales.double(), u.abs().amax(-1, keepdim=True)
        of_row = error.amax(-1, keepdim=True)
        assert ((scales * 127 - largest).abs() <= of_row + largest * 2**-22 + 127 * 2.0**-64).all()
        off = (codes.double() * scales - u).abs()
        assert (off <= scales / 2 * (1 + 2**-14) + error).all()  # 127 * 2^-23 of a step twice

    return check


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize(
    ("grid", "heads"), [((1, 1, 1), 3), ((1, 17, 1), 16), ((257, 1, 1), 1), ((2, 3, 5), 5)]
)
def test_queries_and_keys_are_to_half_a_step(backend, assert_coded, dtype, grid, heads):
    (q, k, _), weights = packed(2, math.prod(grid), heads, backend.device)
    turns = tables(grid, backend.device)
    shift = torch.randn(heads, 128, device=backend.device)
    outputs = run_qk(backend, dtype, (q, k), weights, (turns, grid), q_scale=0.125, shift=shift)
    expected = [exact(x, w, turns, grid) for x, w in zip((q, k), weights, strict=True)]
    sizes = [of.abs().amax(-1, keepdim=True) for of in expected]
    expected = [expected[0] * 0.125, expected[1] - shift.cpu().double()[:, None]]
    for (codes, scales), u, size in zip(outputs, expected, sizes, strict=True):
        assert_coded(codes, scales[..., None], u, error=(ARITHMETIC * size).expand_as(u))


@pytest.mark.parametrize("dtype", CODES)
def test_kernel_equals_reference(backend, dtype):
    grid = (2, 3, 3)
    (q, k, v), weights = packed(2, 18, 9, backend.device)
    turns = tables(grid, backend.device)
    shift = torch.randn(9, 128, device=backend.device)
    order = torch.randperm(18, device=backend.device).int()
    outputs = run_qk(
        backend, dtype, (q, k), weights, (turns, grid), q_scale=2.0, shift=shift, order=order
    )
    rotary = reference.Rotary(*turns)
    expected = (
        reference.qk_prep(q, weights[0], rotary, 2.0, order, dtype=dtype),
        reference.qk_prep(k, weights[1], rotary, order=order, dtype=dtype, shift=shift),
    )
    for (codes, scales), (of_codes, of_scales) in zip(outputs, expected, strict=True):
        torch.testing.assert_close(scales, of_scales.cpu(), rtol=10 * ARITHMETIC, atol=0)
        # two ways of float32, so a value on the edge of a rounding may fall to either side
        near, far = (t.cpu().float() for t in (codes, of_codes))
        step = 1 if dtype == torch.int8 else far.abs().clamp_min(2.0**-6) / 8
        assert ((near - far).abs() <= step).all()
        assert (near != far).float().mean() < 0.01
    scales = run_v_scales(backend, v)
    assert torch.equal(scales, reference.v_scales(v, 128).cpu())
    codes = run_v(backend, v, scales.to(backend.device), order)
    expected = reference.v_prep(v.cpu(), scales, order.cpu())
    assert torch.equal(codes.float(), expected.float())


@pytest.mark.parametrize("dtype", CODES)
def test_queries_and_keys_come_in_the_order_asked_for(backend, dtype):
    grid = (2, 3, 5)
    (q, k, _), weights = packed(2, 30, 2, backend.device)
    turns = tables(grid, backend.device)
    order = torch.randperm(30, device=backend.device).int()
    plain = run_qk(backend, dtype, (q, k), weights, (turns, grid))
    ordered = run_qk(backend, dtype, (q, k), weights, (turns, grid), order=order)
    for of_plain, of_ordered in zip(plain, ordered, strict=True):
        for before, after in zip(of_plain, of_ordered, strict=True):
            assert torch.equal(after.float(), before.float()[:, :, order.cpu()])


@pytest.mark.parametrize("dtype", CODES)
def test_a_shift_of_all_keys_makes_their_steps_finer_and_changes_no_softmax(backend, dtype):
    (q, k, _), weights = packed(1, 64, 1, backend.device)
    weights[1].fill_(1.0)
    k = (torch.randn_like(k) * 0.1 + torch.randn(128, device=backend.device)).bfloat16()
    k = torch.cat([k, k, k], dim=-1)[..., :128]  # with the stride of a packed one
    turns = [torch.stack([torch.ones(n, c), torch.zeros(n, c)]) for n, c in zip((1, 1, 64), CHANNELS, strict=True)]  # fmt: skip
    turns = [t.to(backend.device) for t in turns]
    u = exact(k, weights[1], turns, (1, 1, 64))
    shift = u.mean(2)[0].float().to(backend.device)
    q_exact = exact(q, weights[0], turns, (1, 1, 64)) * 128**-0.5
    wanted = (q_exact @ u.mT).softmax(-1)
    off = []
    for of in (None, shift):
        _, (codes, scales) = run_qk(backend, dtype, (q, k), weights, (turns, (1, 1, 64)), shift=of)
        keys = codes.double() * scales.double()[..., None]
        off.append(((q_exact @ keys.mT).softmax(-1) - wanted).abs().max().item())
    assert off[1] < off[0] / 2


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_head_that_is_not_finite_spoils_no_other(backend, dtype, bad):
    (q, k, _), weights = packed(1, 3, 2, backend.device)
    q[0, 1, 128 + 70] = bad
    (codes, scales), (_, of_keys) = run_qk(
        backend, dtype, (q, k), weights, (tables((1, 1, 3), backend.device), (1, 1, 3))
    )
    assert scales[0].isfinite().tolist() == [[True] * 3, [True, False, True]]
    assert of_keys.isfinite().all()
    values = codes.float() * scales[..., None]
    assert values.isfinite().all(-1)[0].tolist() == [[True] * 3, [True, False, True]]


def test_a_head_of_zeros_has_zeros_and_a_scale_with_an_inverse(backend):
    (q, k, _), weights = packed(1, 2, 1, backend.device)
    q.zero_()
    for dtype in CODES:
        (codes, scales), _ = run_qk(
            backend, dtype, (q, k), weights, (tables((1, 1, 2), backend.device), (1, 1, 2))
        )
        assert (codes.float() == 0).all()
        assert (scales == 2.0**-64).all()


@pytest.mark.parametrize("tokens", [1, 16, 17, 128, 130, 257, 1100])
def test_values_are_transposed_to_half_a_step_and_padded(backend, assert_quantized, tokens):
    (_, _, v), _ = packed(2, tokens, 3, backend.device)
    scales = run_v_scales(backend, v)
    u = transposed(v)
    largest = u.float().abs().amax(-1)
    # the division of float32, rounded once: the same bits
    assert torch.equal(scales, torch.maximum(largest / 448, torch.tensor(2.0**-64)))
    codes = run_v(backend, v, scales.to(backend.device))
    # the scale, its inverse and the product are rounded to float32; bf16 values often lie on a tie
    assert_quantized(codes[..., :tokens], scales[..., None], u, error=u.double().abs() * 2**-22)
    assert codes.shape[-1] == -(-tokens // 16) * 16
    assert (codes[..., tokens:].view(torch.uint8) == 0).all()


def test_values_come_in_the_order_asked_for(backend):
    (_, _, v), _ = packed(2, 150, 2, backend.device)
    scales = run_v_scales(backend, v).to(backend.device)
    order = torch.randperm(150, device=backend.device).int()
    plain, ordered = run_v(backend, v, scales), run_v(backend, v, scales, order)
    assert torch.equal(ordered[..., :150].float(), plain.float()[..., order.cpu()])
    assert (ordered[..., 150:].float() == 0).all()


def test_an_order_that_is_none_reads_no_other_memory(backend):
    (_, _, v), _ = packed(1, 4, 1, backend.device)
    order = torch.tensor([-1, 1 << 30, 4, 0], device=backend.device, dtype=torch.int32)
    codes = run_v(backend, v, run_v_scales(backend, v).to(backend.device), order)
    assert torch.equal(codes[..., 0].float(), codes[..., 1].float())
    assert torch.equal(codes[..., 0].float(), codes[..., 2].float())


def test_values_beyond_a_given_scale_saturate(backend):
    (_, _, v), _ = packed(1, 20, 1, backend.device)
    v.copy_(torch.where(torch.arange(20) % 2 == 0, 3.0, -5.0)[:, None])
    scales = torch.full((1, 1, 128), 2.0**-8, device=backend.device)
    codes = run_v(backend, v, scales)
    assert codes[0, 0, :, :4].float().unique(dim=0).tolist() == [[448.0, -448.0] * 2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_channel_that_is_not_finite_spoils_neither_others_nor_the_padding(backend, bad):
    (_, _, v), _ = packed(1, 600, 1, backend.device)
    v[0, 555, 7] = bad
    scales = run_v_scales(backend, v)
    assert scales.isfinite()[0, 0].nonzero().flatten().tolist() == [*range(7), *range(8, 128)]
    codes = run_v(backend, v, scales.to(backend.device))
    values = codes.float() * scales[..., None]
    assert values[0, 0, 7, 555].isnan()
    assert values[0, 0, :7].isfinite().all()
    assert (codes[..., 600:].view(torch.uint8) == 0).all()


QK = {
    "codes": INT8, "q": ALIGNED, "k": ALIGNED, "q_weight": ALIGNED, "k_weight": ALIGNED,
    "k_shift": ALIGNED, "frames": ALIGNED, "rows": ALIGNED, "columns": ALIGNED, "order": ALIGNED,
    "q_out": 2 * ALIGNED, "q_scales": ALIGNED, "k_out": 2 * ALIGNED, "k_scales": ALIGNED,
    "batch": 2, "tokens": 30, "heads": 2, "q_stride": 768, "k_stride": 768, "num_frames": 2,
    "num_rows": 3, "num_columns": 5, "frame_channels": 22, "row_channels": 21,
    "column_channels": 21, "q_scale": 1.0, "stream": None,
}  # fmt: skip
V_SCALES = {"v": ALIGNED, "scales": ALIGNED, "batch": 2, "tokens": 30, "heads": 2, "stride": 768}
V = {"v": ALIGNED, "scales": ALIGNED, "order": ALIGNED, "out": 2 * ALIGNED}
V |= {name: V_SCALES[name] for name in ("batch", "tokens", "heads", "stride")}
GOOD = {"qk_prep": QK, "v_scales": V_SCALES | {"stream": None}, "v_prep": V | {"stream": None}}
SIZES = ("batch", "tokens", "heads")
BAD_QK = [
    {"codes": 2},
    {"codes": -1},
    *({name: None} for name in ("q", "k", "q_weight", "k_weight", "q_out", "k_out")),
    *({name: None} for name in ("q_scales", "k_scales", "frames", "columns")),
    *({name: ALIGNED + 8} for name in ("q", "k_weight", "k_shift", "q_out", "k_out", "k_scales")),
    {"order": ALIGNED + 2},
    {"k_stride": 255},
    {"q_stride": 772},  # rows that begin between two vectors
    {"num_rows": 4},
    {"num_frames": -2, "num_rows": -3},
    {"row_channels": 22},
    {"num_frames": 1 << 40, "num_rows": 1 << 40},
]
BAD_V = [
    {"v": None},
    {"scales": None},
    {"v": ALIGNED + 2},
    {"scales": ALIGNED + 4},
    {"stride": 255},
    {"stride": 772},
    {"stride": 1 << 40},
]
BAD_SIZES = [
    *({name: -1} for name in SIZES),
    {"batch": 1 << 40},
    {"batch": 1 << 32, "heads": 1 << 32},
    {"tokens": 1 << 62},
    {"heads": 1 << 60},
]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("qk_prep", changes) for changes in BAD_QK),
        *((name, changes) for name in ("v_scales", "v_prep") for changes in BAD_V),
        *(("v_prep", changes) for changes in ({"out": None}, {"out": 8}, {"order": 2})),
        *((name, changes) for name in GOOD for changes in BAD_SIZES),
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, name, changes):
    arguments = (GOOD[name] | changes).values()
    assert getattr(launchers, f"predict2_{name}")(*arguments) == INVALID_VALUE


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("size", SIZES)
def test_an_empty_problem_launches_nothing(launchers, name, size):
    nothing = {key: None for key, value in GOOD[name].items() if value in (ALIGNED, 2 * ALIGNED)}
    arguments = (GOOD[name] | nothing | {size: 0}).values()
    assert getattr(launchers, f"predict2_{name}")(*arguments) == 0
