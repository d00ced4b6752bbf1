# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import library as torch_library
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_kernels import qkv_ops, reference

DTYPES = [torch.int8, reference.E4M3]
CHANNELS = (22, 21, 21)  # of frames, rows and columns, as in the networks


def tables(grid):
    angles = [torch.rand(n, c) * 6 for n, c in zip(grid, CHANNELS, strict=True)]
    return [torch.stack([a.cos(), a.sin()]) for a in angles]


def operands(**changes):
    """Of a good call of qk_prep for two heads and a grid of 2 x 3 x 5."""
    q, k, _ = torch.randn(2, 30, 3 * 256).bfloat16().chunk(3, dim=-1)
    weights = [torch.randn(128).bfloat16() for _ in range(2)]
    values = {"q": q, "k": k, "weights": weights, "tables": tables((2, 3, 5)), "dtype": torch.int8}
    values |= {"k_shift": torch.randn(2, 128), "order": torch.randperm(30).int()}
    return values | changes


def each_tensor(given, change):
    """The operands with every tensor changed."""
    return {
        name: [change(t) for t in value]
        if isinstance(value, list)
        else change(value)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in given.items()
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plain", [False, True])
def test_operators_on_the_cpu_are_their_references_and_their_fakes_have_their_shapes(dtype, plain):
    given = operands(dtype=dtype, **({"k_shift": None, "order": None} if plain else {}))
    q, k, weights, order = (given[name] for name in ("q", "k", "weights", "order"))
    rotary = reference.Rotary(*given["tables"])
    expected = (
        *reference.qk_prep(q, weights[0], rotary, 0.5, order, dtype=dtype),
        *reference.qk_prep(k, weights[1], rotary, order=order, dtype=dtype, shift=given["k_shift"]),
    )
    outputs = qkv_ops.qk_prep(**given, q_scale=0.5)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(actual.float(), wanted.float())
    v = k
    scales = qkv_ops.v_scales(v)
    assert torch.equal(scales, reference.v_scales(v, 128))
    codes = qkv_ops.v_prep(v, scales, order)
    assert torch.equal(codes.float(), reference.v_prep(v, scales, order).float())
    torch_library.opcheck(qkv_ops.qk_prep, (), given)
    torch_library.opcheck(qkv_ops.v_scales, (v,))
    torch_library.opcheck(qkv_ops.v_prep, (v, scales, order))
    mode = FakeTensorMode()
    fakes = each_tensor(given, mode.from_tensor)
    of_v = mode.from_tensor(v), mode.from_tensor(scales), fakes["order"]
    shapes = [*qkv_ops.qk_prep(**fakes), qkv_ops.v_scales(of_v[0]), qkv_ops.v_prep(*of_v)]
    for fake, real in zip(shapes, [*outputs, scales, codes], strict=True):
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
        assert fake.stride() == real.stride()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": torch.ones(2, 30, 128)}, "alike in batch and channels"),
        ({"k": torch.ones(2, 29, 256), "tables": []}, "must be int32 for each of the tokens"),
        ({"k": torch.ones(2, 29, 256), "tables": [], "order": None}, "must be alike"),
        ({"weights": [torch.ones(64)] * 2, "tables": []}, "of heads of 128 channels, not 64"),
        ({"tables": tables((2, 3, 4))}, "turn 24 tokens"),
        ({"dtype": torch.uint8}, "int8 or float8_e4m3fn, not torch.uint8"),
        ({"dtype": torch.bfloat16}, "int8 or float8_e4m3fn, not torch.bfloat16"),
        ({"k_shift": torch.ones(128)}, r"k_shift must be \(2, 128\) in float32"),
        ({"k_shift": torch.ones(2, 128).bfloat16()}, "k_shift must be"),
        ({"k_shift": torch.ones(128, 2).mT}, "not contiguous"),
        ({"order": torch.arange(30)}, "must be int32"),
        ({"order": torch.arange(60).int()[::2]}, "not contiguous"),
    ],
)
def test_qk_prep_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        qkv_ops.qk_prep(**operands(**changes))


@pytest.mark.parametrize("shape", [(30, 256), (2, 0, 256), (2, 30, 192)])
def test_values_of_other_shapes_are_refused(shape):
    v = torch.ones(shape, dtype=torch.bfloat16)
    for call in (qkv_ops.v_scales, lambda v: qkv_ops.v_prep(v, torch.ones(2, 2, 128))):
        with pytest.raises(ValueError, match="with a token at least"):
            call(v)


def test_scales_and_orders_of_other_values_are_refused():
    v = torch.ones(2, 30, 256, dtype=torch.bfloat16)
    for scales in (torch.ones(2, 256), torch.ones(2, 2, 128).double()):
        with pytest.raises(ValueError, match="scales must be"):
            qkv_ops.v_prep(v, scales)
    with pytest.raises(ValueError, match="must be int32"):
        qkv_ops.v_prep(v, torch.ones(2, 2, 128), torch.arange(29).int())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_on_a_gpu_equal_those_on_the_cpu(dtype):
    given = operands(dtype=dtype)
    on_gpu = each_tensor(given, lambda t: t.cuda())
    outputs, expected = qkv_ops.qk_prep(**on_gpu), qkv_ops.qk_prep(**given)
    for i in (0, 2):
        (codes, scales), (of_codes, of_scales) = outputs[i : i + 2], expected[i : i + 2]
        torch.testing.assert_close(scales.cpu(), of_scales, rtol=2e-5, atol=0)
        assert (codes.cpu().float() != of_codes.float()).float().mean() < 0.01
    v = on_gpu["k"]
    scales = qkv_ops.v_scales(v)
    assert torch.equal(scales.cpu(), qkv_ops.v_scales(given["k"]))
    codes = qkv_ops.v_prep(v, scales, on_gpu["order"])
    assert torch.equal(
        codes.cpu().float(), qkv_ops.v_prep(given["k"], scales.cpu(), given["order"]).float()
    )


@pytest.mark.gpu
def test_operators_on_a_gpu_refuse_what_the_kernels_do_not_take():
    given = operands(weights=[torch.ones(128) for _ in range(2)])
    given |= {"q": given["q"].float().cuda(), "k": given["k"].float().cuda()}
    with pytest.raises(ValueError, match="must all be bfloat16"):
        qkv_ops.qk_prep(**given)
    v = torch.ones(1, 4, 128, device="cuda")
    with pytest.raises(ValueError, match="must all be bfloat16"):
        qkv_ops.v_scales(v)
    with pytest.raises(ValueError, match="must be rows"):
        qkv_ops.v_scales(v.bfloat16().expand(2, 4, 128))
