# SPDX-License-Identifier: Apache-2.0
"""Fused nodes in ONNX Runtime, through their functions, against the kernels' references."""

import math

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from predict2_export.networks.fused import DOMAIN, VERSION, Rotation
from predict2_export.networks.onnx_functions import add_functions
from predict2_kernels import reference

# Both compute in float32; sums of up to 64 numbers in another order.
FP32 = {"rtol": 0, "atol": 2e-5}
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": VERSION}


def run(name, inputs, outputs, **attributes):
    """Run one node of ours on a dict of tensors."""
    node = helper.make_node(name, list(inputs), outputs, domain=DOMAIN, **PLUGIN, **attributes)
    values = [
        helper.make_tensor_value_info(key, TensorProto.FLOAT, x.shape) for key, x in inputs.items()
    ]
    results = [helper.make_tensor_value_info(key, TensorProto.FLOAT, None) for key in outputs]
    graph = helper.make_graph([node], "graph", values, results)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=opsets, ir_version=10)
    )
    add_functions(model, ir.DataType.FLOAT)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
    feeds = {key: x.numpy() for key, x in inputs.items()}
    return [torch.from_numpy(x) for x in session.run(outputs, feeds)]


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.mark.parametrize("num_parts", [2, 3])
def test_modulate_normalises_scales_and_shifts(normal, num_parts):
    x, modulation = 3 + normal(2, 3, 5, 64), normal(2, 3, num_parts * 64)
    (u,) = run("Predict2Modulate", {"x": x, "modulation": modulation}, ["u"])
    torch.testing.assert_close(u, reference.adaln_modulate(x, modulation), **FP32)


@pytest.mark.parametrize("num_parts", [2, 3])
def test_gated_modulate_takes_an_output_of_another_shape(normal, num_parts):
    x, y = normal(2, 3, 5, 64), normal(2, 15, 64)
    own, following = normal(2, 3, 3 * 64), normal(2, 3, num_parts * 64)
    inputs = {"x": x, "y": y, "modulation": own, "following": following}
    total, u = run("Predict2GatedModulate", inputs, ["total", "u"])
    expected = reference.gated_residual_modulate(x, y, own, following)
    torch.testing.assert_close(total, expected[0], **FP32)
    torch.testing.assert_close(u, expected[1], **FP32)


@pytest.mark.parametrize("head_dim", [32, 128])
def test_queries_and_keys_are_normalised_rotated_and_scaled(normal, head_dim):
    heads, grid = 3, (2, 3, 5)
    q, k = (
        normal(2, math.prod(grid), heads * head_dim),
        normal(2, math.prod(grid), heads * head_dim),
    )
    weights, channels = [normal(head_dim), normal(head_dim)], (head_dim // 2 - 10, 4, 6)
    sizes = zip(grid, channels, strict=True)
    tables = [normal(2, positions, count) for positions, count in sizes]
    named = {"frames": tables[0], "rows": tables[1], "columns": tables[2]}
    inputs = {"q": q, "k": k, "q_weight": weights[0], "k_weight": weights[1], **named}
    attributes = {"num_heads": heads, "heads_first": 1, "q_scale": 0.25}
    q_out, k_out = run("Predict2QkNormRope", inputs, ["q_out", "k_out"], **attributes)
    rotary = reference.Rotary(*tables)
    expected = reference.qk_norm_rope(q, weights[0], rotary, 0.25).transpose(1, 2)
    torch.testing.assert_close(q_out, expected, **FP32)
    expected = reference.qk_norm_rope(k, weights[1], rotary).transpose(1, 2)
    torch.testing.assert_close(k_out, expected, **FP32)


def test_keys_of_the_text_are_normalised_and_not_rotated(normal):
    q, k, weights = normal(2, 7, 96), normal(2, 4, 96), [normal(32), normal(32)]
    inputs = {"q": q, "k": k, "q_weight": weights[0], "k_weight": weights[1]}
    attributes = {"num_heads": 3, "heads_first": 1, "q_scale": 0.25}
    q_out, k_out = run("Predict2QkNorm", inputs, ["q_out", "k_out"], **attributes)
    expected = reference.qk_norm_rope(q, weights[0], None, 0.25).transpose(1, 2)
    torch.testing.assert_close(q_out, expected, **FP32)
    torch.testing.assert_close(k_out, reference.qk_norm_rope(k, weights[1]).transpose(1, 2), **FP32)


def test_attention_leaves_the_scale_to_the_queries(normal):
    q, k, v = normal(2, 3, 7, 32), normal(2, 3, 5, 32), normal(2, 3, 5, 32)
    (y,) = run("Predict2Attention", {"q": q, "k": k, "v": v}, ["y"])
    expected = torch.softmax(q.double() @ k.double().transpose(2, 3), dim=-1) @ v.double()
    torch.testing.assert_close(y, expected.float(), **FP32)


def in_bfloat16(name, inputs, outputs, **attributes):
    """The same in bfloat16, by ONNX's own evaluator: it rounds after every operator, as the standard says."""
    kinds = {torch.bfloat16: TensorProto.BFLOAT16, torch.float32: TensorProto.FLOAT}
    node = helper.make_node(name, list(inputs), outputs, domain=DOMAIN, **PLUGIN, **attributes)
    values = [
        helper.make_tensor_value_info(key, kinds[x.dtype], x.shape) for key, x in inputs.items()
    ]
    results = [helper.make_tensor_value_info(key, TensorProto.BFLOAT16, None) for key in outputs]
    graph = helper.make_graph([node], "graph", values, results)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    model = ir.serde.deserialize_model(
        helper.make_model(graph, opset_imports=opsets, ir_version=10)
    )
    add_functions(model, ir.DataType.BFLOAT16)
    feeds = {
        key: x.float().numpy().astype(ml_dtypes.bfloat16)
        if x.dtype == torch.bfloat16
        else x.numpy()
        for key, x in inputs.items()
    }
    found = ReferenceEvaluator(ir.to_proto(model)).run(outputs, feeds)
    return [torch.from_numpy(np.asarray(array).astype(np.float32)) for array in found]


def check_rounding(actual, expected):
    """Equal but for the few that lie so near the middle of two numbers that the order of a sum decides."""
    wide = expected.float()
    assert (actual != wide).float().mean() < 5e-3
    torch.testing.assert_close(actual, wide, rtol=2**-7, atol=1e-6)


def test_bodies_in_bfloat16_round_where_the_kernels_do(normal):
    def rounded(*shape):
        return normal(*shape).bfloat16()

    x, y = 3 + rounded(2, 3, 5, 64), rounded(2, 15, 64)
    own, following = rounded(2, 3, 3 * 64), rounded(2, 3, 2 * 64)
    (u,) = in_bfloat16("Predict2Modulate", {"x": x, "modulation": own}, ["u"])
    check_rounding(u, reference.adaln_modulate(x, own))
    inputs = {"x": x, "y": y, "modulation": own, "following": following}
    found = in_bfloat16("Predict2GatedModulate", inputs, ["total", "u"])
    for actual, expected in zip(
        found, reference.gated_residual_modulate(x, y, own, following), strict=True
    ):
        check_rounding(actual, expected)

    q, k, weights = rounded(2, 30, 96), rounded(2, 30, 96), [rounded(32), rounded(32)]
    tables = [normal(2, 2, 6), normal(2, 3, 4), normal(2, 5, 6)]  # in float32 always
    inputs = {"q": q, "k": k, "q_weight": weights[0], "k_weight": weights[1]}
    inputs |= dict(zip(("frames", "rows", "columns"), tables, strict=True))
    attributes = {"num_heads": 3, "heads_first": 1, "q_scale": 32**-0.5}
    found = in_bfloat16("Predict2QkNormRope", inputs, ["q_out", "k_out"], **attributes)
    rotary = reference.Rotary(*tables)
    for actual, given, weight, scale in zip(found, (q, k), weights, (32**-0.5, 1.0), strict=True):
        expected = reference.qk_norm_rope(given, weight, rotary, scale)
        check_rounding(actual, expected.transpose(1, 2))


def test_the_networks_angles_are_the_kernels(normal):
    tables = normal(2, 2, 12), normal(2, 3, 10), normal(2, 4, 10)
    theirs = reference.angles(reference.Rotary(*tables))[:, :, 0]
    assert torch.equal(Rotation(*tables).of_tokens, theirs)


def test_a_model_without_our_nodes_gets_no_functions():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [value], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    read = ir.serde.deserialize_model(model)
    add_functions(read, ir.DataType.FLOAT)
    assert not read.functions
    assert DOMAIN not in read.opset_imports
    assert np.array_equal(
        onnxruntime.InferenceSession(ir.to_proto(read).SerializeToString()).run(
            None, {"x": np.ones(1, np.float32)}
        )[0],
        [-1],
    )
