# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

import pytest
import torch
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_export.networks.dit import Attention, RotaryTables
from predict2_export.networks.fused import EPS, queries_and_keys
from predict2_kernels import BFLOAT16, FLOAT
from predict2_kernels.reference import Rotary, angles, qk_norm_rope
from predict2_kernels.torch_ops import qk_norm_rope as operator
from predict2_spec.networks import DIT_2B_VIDEO2WORLD

ALIGNED = 1 << 20  # an address that is never read
INVALID_VALUE = 1  # CUDA's number for cudaErrorInvalidValue


def spec(head_dim, heads=2):
    return replace(DIT_2B_VIDEO2WORLD, width=head_dim * heads, num_heads=heads, max_grid=(4, 6, 8))


def tables(head_dim, grid, device="cpu"):
    full = RotaryTables(spec(head_dim))
    axes = zip((full.frames, full.rows, full.columns), grid, strict=True)
    return [table[:, :size].contiguous().to(device) for table, size in axes]


def normal(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 2, 5), (1, 6, 8)])
def test_reference_is_the_networks_queries(head_dim, grid):
    of = spec(head_dim)
    attention = Attention(of, of.width).double()
    torch.nn.init.normal_(attention.q_norm.weight)
    x = normal(2, math.prod(grid), of.width)
    weights = attention.q_norm.weight, attention.k_norm.weight
    rotation = RotaryTables(of)(grid)
    expected, _ = queries_and_keys(x, x, weights, rotation)
    expected = expected.transpose(1, 2)
    rotary = Rotary(*tables(head_dim, grid))
    torch.testing.assert_close(angles(rotary)[:, :, 0], rotation.of_tokens, rtol=0, atol=0)
    weight = attention.q_norm.weight
    assert attention.q_norm.eps == EPS
    # float64 on both sides: only the order of operations differs
    torch.testing.assert_close(qk_norm_rope(x, weight, rotary), expected, rtol=1e-12, atol=1e-12)
    plain = queries_and_keys(x, x, weights, None)[0].transpose(1, 2)
    torch.testing.assert_close(qk_norm_rope(x, weight), plain, rtol=1e-12, atol=1e-12)
    scaled = qk_norm_rope(x, weight, rotary, 0.25)
    torch.testing.assert_close(scaled, expected * 0.25, rtol=1e-12, atol=1e-12)


def test_operator_on_the_cpu_is_its_reference_and_its_fake_has_its_shapes():
    q, k = normal(2, 30, 64, dtype=torch.float32), normal(2, 30, 64, dtype=torch.float32, seed=1)
    weights = [normal(32, dtype=torch.float32, seed=seed) for seed in (2, 3)]
    rotary = tables(32, (3, 2, 5))
    for heads_first in (False, True):
        arguments = (q, k, weights, rotary, 0.5, heads_first)
        outputs = operator(*arguments)
        expected = qk_norm_rope(q, weights[0], Rotary(*rotary), 0.5)
        expected = expected.transpose(1, 2) if heads_first else expected
        assert torch.equal(outputs[0], expected)
        torch_library.opcheck(operator, arguments)  # schema, aliasing and the fake's shapes
    with FakeTensorMode():
        text = torch.empty(2, 7, 64, dtype=torch.bfloat16)
        queries = torch.empty(2, 30, 192, dtype=torch.bfloat16)[..., :64]
        of = [torch.empty(32, dtype=torch.bfloat16) for _ in range(2)]
        q, k = operator(queries, text, of, [], heads_first=True)
        assert (q.shape, k.shape, q.dtype) == ((2, 2, 30, 32), (2, 2, 7, 32), torch.bfloat16)


def operands(**changes):
    """Of a good call of the operator for two heads of 32 and a grid of 3 x 2 x 5."""
    weights = [torch.ones(32), torch.ones(32)]
    values = {"q": torch.ones(2, 30, 64), "k": torch.ones(2, 30, 64), "weights": weights}
    return values | {"tables": tables(32, (3, 2, 5))} | changes


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.ones(30, 64)}, "alike in batch and channels"),
        ({"k": torch.ones(1, 30, 64)}, "alike in batch and channels"),
        ({"k": torch.ones(2, 30, 32)}, "alike in batch and channels"),
        ({"weights": []}, "two of one head's channels"),
        ({"weights": [torch.ones(32)]}, "two of one head's channels"),
        ({"weights": [torch.ones(32), torch.ones(64)]}, "two of one head's channels"),
        ({"weights": [torch.ones(1, 32)] * 2}, "two of one head's channels"),
        ({"weights": [torch.ones(0)] * 2}, "two of one head's channels"),
        ({"weights": [torch.ones(48)] * 2}, "which divide 64"),
        ({"tables": tables(32, (3, 2, 5))[:2]}, "none or three"),
        ({"tables": [t.double() for t in tables(32, (3, 2, 5))]}, "in float32"),
        ({"tables": [t[:1] for t in tables(32, (3, 2, 5))]}, "none or three"),
        ({"tables": [t[0] for t in tables(32, (3, 2, 5))]}, "none or three"),
        ({"tables": tables(32, (3, 2, 4))}, "turn 24 tokens"),
        ({"k": torch.ones(2, 7, 64)}, "turn 30 tokens"),
        ({"tables": tables(64, (3, 2, 5))}, "and 64 channels"),
    ],
)
def test_operator_refuses_shapes_that_do_not_fit(changes, message, fake):
    given = operands(**changes)
    if fake:
        mode = FakeTensorMode()
        given = {
            key: [mode.from_tensor(t) for t in value]
            if isinstance(value, list)
            else mode.from_tensor(value)
            for key, value in given.items()
        }
    with pytest.raises(ValueError, match=message):
        operator(**given)


@pytest.mark.gpu
def test_operator_on_a_gpu_refuses_what_does_not_fit_and_what_is_elsewhere():
    weights = [torch.ones(32, device="cuda") for _ in range(2)]
    q, k = torch.ones(2, 30, 64, device="cuda"), torch.ones(1, 30, 64, device="cuda")
    with pytest.raises(ValueError, match="alike in batch"):
        operator(q, k, weights, [])
    with pytest.raises(ValueError, match="all be on one device"):
        operator(q, q, [weights[0], weights[1].cpu()], [])
    with pytest.raises(ValueError, match="all be on one device"):
        operator(q, q, weights, tables(32, (3, 2, 5)))


def arguments(**changes):
    """Of a good call for two heads of 64 and a grid of 2 x 3 x 5."""
    values = {
        "dtype": BFLOAT16, "q": ALIGNED, "k": ALIGNED, "v": None, "q_weight": ALIGNED,
        "k_weight": ALIGNED, "frames": ALIGNED, "rows": ALIGNED, "columns": ALIGNED, "order": None,
        "q_out": 2 * ALIGNED, "k_out": 2 * ALIGNED, "v_out": None, "batch": 2, "q_tokens": 30,
        "k_tokens": 30, "heads": 2, "head_dim": 64, "q_stride": 384, "k_stride": 384,
        "num_frames": 2, "num_rows": 3, "num_columns": 5, "frame_channels": 12, "row_channels": 10,
        "column_channels": 10, "q_scale": 1.0, "heads_first": 1, "stream": None,
    }  # fmt: skip
    return (values | changes).values()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": 2},
        {"q": None},
        {"k_out": None},
        {"q_weight": None},
        {"q": ALIGNED + 8},
        {"k_weight": ALIGNED + 2},
        {"rows": None},
        {"v": ALIGNED},  # without an output
        {"batch": -1},
        {"heads": -1},
        {"q_tokens": -1},
        {"head_dim": 96},
        {"head_dim": 256},
        {"q_stride": 127},  # shorter than a row
        {"q_stride": 132},  # rows that begin between two vectors
        {"num_frames": 3},  # not the tokens
        {"k_tokens": 60},
        {"num_frames": -2, "num_rows": -3},
        {"row_channels": 11},
        {"row_channels": -10, "frame_channels": 32},
        {"order": ALIGNED + 2},
        {"order": ALIGNED, "q_out": ALIGNED},  # in place, where tokens change theirs
        {"batch": 1 << 40},
        {"batch": 1 << 31, "heads": 1 << 31},
        {"q_tokens": 1 << 62, "k_tokens": 1 << 62},
        {"q_stride": 1 << 40},
        {"num_frames": 1 << 40, "num_rows": 1 << 40},
    ],
)
def test_bad_arguments_are_refused_before_a_launch(launchers, changes):
    assert launchers.predict2_qk_norm_rope(*arguments(**changes)) == INVALID_VALUE


@pytest.mark.parametrize(
    "changes", [{"batch": 0}, {"heads": 0}, {"q_tokens": 0, "k_tokens": 0, "q": None, "k": None}]
)
def test_an_empty_problem_launches_nothing(launchers, changes):
    assert launchers.predict2_qk_norm_rope(*arguments(**changes)) == 0


@pytest.mark.parametrize(
    ("order", "tokens"),
    [
        (torch.arange(29).int(), 30),
        (torch.arange(30), 30),  # int64
        (torch.arange(30).int()[None], 30),
        (torch.arange(30).int(), 7),  # the keys have others
    ],
)
def test_operator_refuses_an_order_that_is_not_of_the_tokens(order, tokens):
    given = operands(k=torch.ones(2, tokens, 64), tables=[])
    with pytest.raises(ValueError, match="for each of the tokens"):
        operator(**given, order=order)


def test_operator_turns_a_token_by_its_own_angles_whatever_the_order():
    q, k = normal(2, 30, 64, dtype=torch.float32), normal(2, 30, 64, dtype=torch.float32, seed=1)
    weights = [normal(32, dtype=torch.float32, seed=seed) for seed in (2, 3)]
    order = torch.arange(30).view(3, 2, 5).permute(2, 1, 0).flatten().int()
    given = (q, k, weights, tables(32, (3, 2, 5)))
    for heads_first in (False, True):
        plain = operator(*given, heads_first=heads_first)
        ordered = operator(*given, heads_first=heads_first, order=order)
        for actual, of in zip(ordered, plain, strict=True):
            assert torch.equal(actual, of[:, :, order] if heads_first else of[:, order])
    torch_library.opcheck(operator, given, {"order": order})


def test_operator_refuses_what_is_not_rows_of_a_tensor():
    from predict2_kernels.torch_ops import _row_stride

    assert _row_stride(torch.empty(2, 5, 192)[..., 64:128]) == 192
    assert _row_stride(torch.empty(2, 1, 64)) == 64
    for x in (
        torch.empty(2, 64, 5).mT,
        torch.empty(2, 5, 128)[..., ::2],
        torch.empty(2, 8, 64)[:, :5],
    ):
        with pytest.raises(ValueError, match="must be rows"):
            _row_stride(x)


@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("heads", [3, 20])
@pytest.mark.parametrize("grid", [(1, 1, 1), (2, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads_first", [False, True])
def test_kernel_equals_reference(backend, head_dim, heads, grid, dtype, heads_first):
    torch.manual_seed(torch.seed())  # fresh inputs in every run
    tokens, width = math.prod(grid), heads * head_dim
    qkv = torch.randn(2, tokens, 3 * width, device=backend.device).to(dtype)
    weights = [torch.randn(head_dim, device=backend.device).to(dtype) for _ in range(2)]
    rotary = tables(head_dim, grid, backend.device)
    order = (heads, tokens) if heads_first else (tokens, heads)
    out = torch.full((3, 2, *order, head_dim), math.nan, device=backend.device, dtype=dtype)
    sizes = (2, tokens, tokens, heads, head_dim, 3 * width, 3 * width, *grid)
    backend.call(
        "predict2_qk_norm_rope",
        FLOAT if dtype == torch.float32 else BFLOAT16,
        *(qkv[..., i * width :].data_ptr() for i in range(3)),
        *(t.data_ptr() for t in (*weights, *rotary)),
        *(None, *(t.data_ptr() for t in out)),
        *(*sizes, *(t.shape[2] for t in rotary), 0.125, heads_first),
    )
    q, k, v = (part.cpu().float() for part in qkv.chunk(3, dim=-1))
    of = Rotary(*(t.cpu() for t in rotary))
    expected = [
        qk_norm_rope(q, weights[0].cpu().float(), of, 0.125),
        qk_norm_rope(k, weights[1].cpu().float(), of),
        v.view(2, tokens, heads, head_dim),
    ]
    # one rounding of the result, half a step of 2^-8 in bf16; the rest is float32 on both sides
    rtol = 2**-8 if dtype == torch.bfloat16 else 1e-5
    for actual, wanted in zip(out, expected, strict=True):
        wanted = wanted.transpose(1, 2) if heads_first else wanted
        torch.testing.assert_close(actual.cpu().float(), wanted, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_takes_queries_and_keys_of_different_length_and_works_in_place(backend, dtype):
    q, k = (torch.randn(2, n, 256, device=backend.device).to(dtype) for n in (5, 3))
    weights = [torch.randn(128, device=backend.device).to(dtype) for _ in range(2)]
    expected = [qk_norm_rope(x.cpu(), w.cpu()) for x, w in zip((q, k), weights, strict=True)]
    backend.call(
        "predict2_qk_norm_rope",
        FLOAT if dtype == torch.float32 else BFLOAT16,
        *(q.data_ptr(), k.data_ptr(), None, *(t.data_ptr() for t in weights), *(None,) * 4),
        *(q.data_ptr(), k.data_ptr(), None, 2, 5, 3, 2, 128, 256, 256, *(0,) * 6, 1.0, 0),
    )
    # two ways of float32, so a value on the edge of a rounding may fall to either side: a step
    rtol = 2**-7 if dtype == torch.bfloat16 else 1e-5
    for actual, wanted in zip((q, k), expected, strict=True):
        actual = actual.cpu().view(wanted.shape)
        torch.testing.assert_close(actual, wanted, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads_first", [False, True])
def test_kernel_writes_tokens_in_another_order(backend, dtype, heads_first):
    grid, heads, head_dim = (2, 3, 5), 5, 32
    tokens, width = math.prod(grid), heads * head_dim
    qkv = torch.randn(2, tokens, 3 * width, device=backend.device).to(dtype)
    weights = [torch.randn(head_dim, device=backend.device).to(dtype) for _ in range(2)]
    rotary = tables(head_dim, grid, backend.device)
    order = torch.randperm(tokens, device=backend.device).int()

    def run(of):
        shape = (heads, tokens) if heads_first else (tokens, heads)
        out = torch.full((3, 2, *shape, head_dim), math.nan, device=backend.device, dtype=dtype)
        backend.call(
            "predict2_qk_norm_rope",
            FLOAT if dtype == torch.float32 else BFLOAT16,
            *(qkv[..., i * width :].data_ptr() for i in range(3)),
            *(t.data_ptr() for t in (*weights, *rotary)),
            *(of, *(t.data_ptr() for t in out)),
            *(2, tokens, tokens, heads, head_dim, 3 * width, 3 * width, *grid),
            *(*(t.shape[2] for t in rotary), 1.0, heads_first),
        )
        return out if heads_first else out.transpose(2, 3)

    # the same arithmetic for every token, so the same bits
    assert torch.equal(run(order.data_ptr()), run(None)[:, :, :, order])


def test_an_order_that_is_none_reads_no_other_memory(backend):
    q = torch.randn(1, 5, 32, device=backend.device)
    weight = torch.ones(32, device=backend.device)
    order = torch.tensor([-1, 5, 1 << 30, 4, 0], device=backend.device, dtype=torch.int32)
    out = torch.full_like(q, math.nan)
    backend.call(
        "predict2_qk_norm_rope",
        *(FLOAT, q.data_ptr(), None, None, weight.data_ptr(), *(None,) * 4),
        *(order.data_ptr(), out.data_ptr(), None, None, 1, 5, 0, 1, 32, 32, 32),
        *(*(0,) * 6, 1.0, 0),
    )
    assert torch.equal(out[0, :3], out[0, 3].expand(3, -1))
    expected = qk_norm_rope(q, weight)[0, [4, 4, 4, 4, 0], 0]
    torch.testing.assert_close(out[0].cpu(), expected.cpu(), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_operator_serves_cross_attention_on_any_stream():
    q, k = torch.randn(1, 33, 256, device="cuda"), torch.randn(1, 5, 256, device="cuda")
    weights = [torch.randn(128, device="cuda") for _ in range(2)]
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        outputs = operator(q, k, weights, [])
    stream.synchronize()
    for actual, x, weight in zip(outputs, (q, k), weights, strict=True):
        expected = qk_norm_rope(x.cpu(), weight.cpu())
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-5, atol=1e-5)
