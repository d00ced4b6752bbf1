# SPDX-License-Identifier: Apache-2.0
"""FP8 linears: their numbers against the format's definition, and their graph in ONNX Runtime."""

from functools import partial

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from torch import nn
from torch.export import Dim

from predict2_export.checkpoint.fp8 import quantized
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.networks.export_graph import ExportGraph
from predict2_export.networks.fp8 import E4M3, Fp8Linear, e4m3, quantize_linears, scale_of
from predict2_export.to_onnx import hollow_graphs, write_onnx
from predict2_runtime.engines.onnxruntime import open_onnxruntime
from predict2_spec.manifest import Graph

INPUTS, OUTPUTS = 48, 33
INPUT_SCALE = scale_of(torch.tensor(3.0)).item()
# By the format's definition: 4 bits of exponent with bias 7, 3 of mantissa; the last pattern is NaN.
E4M3_VALUES = np.array(
    sorted(
        {
            (mantissa / 8 if exponent == 0 else 1 + mantissa / 8) * 2.0 ** (max(exponent, 1) - 7)
            for exponent in range(16)
            for mantissa in range(8)
            if (exponent, mantissa) != (15, 7)
        }
    )
)


def nearest(values):
    """The nearest e4m3 numbers, ties to the even code, in float64."""
    magnitude = np.minimum(np.abs(values), 448.0)
    above = np.searchsorted(E4M3_VALUES, magnitude).clip(1, len(E4M3_VALUES) - 1)
    low, high = E4M3_VALUES[above - 1], E4M3_VALUES[above]
    up = (magnitude - low > high - magnitude) | (
        (magnitude - low == high - magnitude) & (above % 2 == 0)
    )
    return np.copysign(np.where(up, high, low), values)


def stored(value):
    return StoredTensor(tuple(value.shape), value.dtype, value.clone)


@pytest.fixture(scope="module")
def weight():
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def state(weight):
    return quantized({"0.weight": stored(weight)}, {"0": INPUT_SCALE})


def network():
    return quantize_linears(nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False)), ["0"])


def layer(state, dtype=torch.float32):
    made = network().to(dtype)
    for name, value in state.items():
        old = made.get_parameter(name)
        assert value.shape == tuple(old.shape)
        old.data = value.load().to(old.dtype)
    return made


def inputs():
    x = torch.randn(3, 5, INPUTS, generator=torch.Generator().manual_seed(1))
    x[0, 0, :2] = torch.tensor([50.0, -1000.0])  # far beyond what was measured
    return x


def test_rounding_is_to_the_nearest_code_and_never_to_nan():
    middles = (E4M3_VALUES[1:] + E4M3_VALUES[:-1]) / 2
    random = np.random.default_rng(0).normal(0, 100, 1000)
    values = np.concatenate([E4M3_VALUES, middles, [449.0, 464.0, 480.0, 1e30], random])
    values = np.concatenate([values, -values]).astype(np.float32)
    rounded = e4m3(torch.from_numpy(values)).float().numpy()
    np.testing.assert_array_equal(rounded, nearest(values.astype(np.float64)))


def test_a_scale_is_a_number_of_bfloat16_and_never_zero():
    amax = torch.cat([torch.tensor([0.0]), torch.logspace(-8, 4, 500)])
    scales = scale_of(amax)
    assert torch.equal(scales, scales.bfloat16().float())
    assert scales[0] == 1
    # Rounding the scale moves the largest value by half of bfloat16's last place, a sixteenth of e4m3's.
    assert ((amax[1:] / scales[1:] - 448).abs() < 448 * 2**-8).all()


def test_the_layer_computes_what_its_parameters_say(state):
    x = inputs()
    codes, scales = state["0.weight"].load(), state["0.weight_scale"].load()
    held = nearest(x.double().numpy() / INPUT_SCALE) * INPUT_SCALE
    expected = held @ (codes.double() * scales.double()[:, None]).numpy().T
    actual = layer(state)(x).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_rounded_weights_are_as_near_as_the_format_allows(state, weight):
    codes, scales = state["0.weight"].load(), state["0.weight_scale"].load()
    assert codes.dtype == E4M3
    again = codes.float() * scales[:, None]
    # Half of the last of 3 bits, and half of the smallest code where numbers are tiny.
    assert ((again - weight).abs() <= weight.abs() * 2**-4 + scales[:, None] * 2**-10).all()
    assert (codes.float().abs().amax(dim=1) == 448).all()  # every row uses the whole range


def test_a_cast_of_the_network_casts_scales_and_keeps_codes(state):
    made = layer(state, torch.bfloat16)
    assert made[0].weight.dtype == E4M3
    assert torch.equal(made[0].weight.view(torch.uint8), state["0.weight"].load().view(torch.uint8))
    assert made[0].weight_scale.dtype == made[0].input_scale.dtype == torch.bfloat16
    # Every scale is a number of bfloat16: both networks hold the same weights.
    assert torch.equal(made[0].weight_scale.float(), state["0.weight_scale"].load())


def lower(folder, state, dtype):
    def graphs(module):
        shapes = ({0: Dim("batch"), 1: Dim("tokens")},)
        return {"main": ExportGraph(module, (torch.zeros(2, 3, INPUTS, dtype=dtype),), ("x",), ("y",), shapes)}  # fmt: skip

    hollow, found = hollow_graphs(network, graphs, dtype)
    write_onnx(found["main"], folder / "main.onnx", hollow, state)
    return folder / "main.onnx"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_graph_has_standard_operators_and_the_weight_in_8_bits(tmp_path, state, dtype):
    path = lower(tmp_path, state, dtype)
    model = onnx.load(str(path))
    names = [node.op_type for node in model.graph.node]
    assert names == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Transpose", "MatMul"]  # fmt: skip
    assert {node.domain for node in model.graph.node} == {""}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    float_kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype("float32"))
    if dtype == torch.bfloat16:
        float_kind = onnx.TensorProto.BFLOAT16
    assert kinds == {
        "0.weight": onnx.TensorProto.FLOAT8E4M3FN,
        "0.weight_scale": float_kind,
        "0.input_scale": float_kind,
    }


def test_the_stored_codes_read_back_by_both_libraries(tmp_path, state):
    path = lower(tmp_path, state, torch.bfloat16)
    codes = state["0.weight"].load()
    (read,) = (t for t in onnx.load(str(path)).graph.initializer if t.name == "0.weight")
    assert read.raw_data == codes.view(torch.uint8).numpy().tobytes()
    values = onnx.numpy_helper.to_array(read).astype(np.float32)
    np.testing.assert_array_equal(values, codes.float().numpy())
    mapped = onnx_ir.load(path).graph.initializers["0.weight"].const_value
    np.testing.assert_array_equal(mapped.numpy().astype(np.float32), codes.float().numpy())


def test_onnx_runtime_computes_what_the_layer_computes(tmp_path, state):
    path = lower(tmp_path, state, torch.float32)
    graph = Graph(path.name, "", 0, {"x": ""}, {"y": ""})
    x = inputs()
    actual = open_onnxruntime(path, graph, "cpu")({"x": x.numpy()})["y"]
    expected = layer(state)(x).numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_weights_are_rounded_one_at_a_time_when_they_are_read(weight):
    read = []

    def load(name):
        read.append(name)
        return weight.clone()

    names = [f"{i}.weight" for i in range(3)]
    stored = {n: StoredTensor((OUTPUTS, INPUTS), weight.dtype, partial(load, n)) for n in names}
    state = quantized(stored, {"0": 1.0, "2": 1.0})
    assert read == []
    assert set(state) == {*names, "0.weight_scale", "0.input_scale", "2.weight_scale", "2.input_scale"}  # fmt: skip
    assert torch.equal(state["1.weight"].load(), weight)  # not quantised
    state["0.weight"].load()
    assert set(read) == {"1.weight", "0.weight"}


def test_a_layer_is_replaced_by_one_of_its_size():
    made = quantize_linears(nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 2)), ["0"])
    assert isinstance(made[0], Fp8Linear)
    assert tuple(made[0].weight.shape) == (6, 4)
    assert isinstance(made[1], nn.Linear)
