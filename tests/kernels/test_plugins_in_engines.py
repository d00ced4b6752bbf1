# SPDX-License-Identifier: Apache-2.0
"""Networks of one plugin, built and run by TensorRT, against the references."""

import math

import numpy as np
import pytest
import torch

from predict2_kernels import plugin_path
from predict2_kernels.reference import (
    Rotary,
    adaln_modulate,
    gated_residual,
    gated_residual_modulate,
    qk_norm_rope,
)

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


@pytest.fixture(scope="module")
def trt():
    """TensorRT with our plugins in its registry."""
    tensorrt = pytest.importorskip("tensorrt")
    library = plugin_path(int(tensorrt.__version__.split(".")[0]))
    if library is None:
        pytest.skip("the plugins were not built for this TensorRT")
    assert tensorrt.get_plugin_registry().load_library(str(library))
    return tensorrt


def run(trt, name, inputs, num_outputs, **attributes):
    """Outputs of an engine of the one plugin."""
    creator = trt.get_plugin_registry().get_creator(name, "1", "predict2")
    kinds = {
        int: (np.int32, trt.PluginFieldType.INT32),
        float: (np.float32, trt.PluginFieldType.FLOAT32),
    }
    arrays = {key: np.array([value], kinds[type(value)][0]) for key, value in attributes.items()}
    fields = [trt.PluginField(k, a, kinds[type(attributes[k])][1]) for k, a in arrays.items()]
    plugin = creator.create_plugin(name, trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 11 is always so
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    types = {torch.float32: trt.float32, torch.bfloat16: trt.bfloat16}
    tensors = [
        network.add_input(f"in{i}", types[t.dtype], tuple(t.shape)) for i, t in enumerate(inputs)
    ]
    layer = network.add_plugin_v3(tensors, [], plugin)
    for i in range(num_outputs):
        layer.get_output(i).name = f"out{i}"
        network.mark_output(layer.get_output(i))
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    assert plan is not None
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    shapes = [tuple(engine.get_tensor_shape(f"out{i}")) for i in range(num_outputs)]
    outputs = [
        torch.full(shape, math.nan, dtype=inputs[0].dtype, device="cuda") for shape in shapes
    ]
    for key, of in (("in", inputs), ("out", outputs)):
        for i, tensor in enumerate(of):
            assert context.set_tensor_address(f"{key}{i}", tensor.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return [t.cpu() for t in outputs]


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda").to(dtype)


def assert_close(actual, expected):
    # the reference may round a value on the edge to the other side: a step of 2^-7 in bf16
    torch.testing.assert_close(actual, expected, rtol=2**-7, atol=1e-4)


def test_modulations_equal_their_references(trt):
    x, y = normal(1, 3, 40, 2048), normal(1, 120, 2048)
    m, following = normal(1, 3, 1, 3 * 2048), normal(1, 3, 1, 2 * 2048)
    on_cpu = [t.cpu() for t in (x, y, m, following)]
    assert_close(run(trt, "Predict2Modulate", [x, m], 1)[0], adaln_modulate(on_cpu[0], on_cpu[2]))
    total = run(trt, "Predict2GatedAdd", [x, y, m], 1)[0]
    assert torch.equal(total, gated_residual(*on_cpu[:3]))
    outputs = run(trt, "Predict2GatedModulate", [x, y, m, following], 2)
    expected = gated_residual_modulate(*on_cpu)
    assert torch.equal(outputs[0], expected[0])
    assert_close(outputs[1], expected[1])


@pytest.mark.parametrize("heads_first", [0, 1])
def test_queries_and_keys_equal_their_references(trt, heads_first):
    heads, head_dim, grid = 16, 128, (3, 4, 10)
    qkv = normal(2, math.prod(grid), 3 * heads * head_dim)
    weights = [normal(head_dim) for _ in range(2)]
    sizes = zip(grid, (22, 21, 21), strict=True)
    tables = [normal(2, positions, channels, dtype=torch.float32) for positions, channels in sizes]
    attributes = {"num_heads": heads, "packed": 1, "heads_first": heads_first}
    inputs = [qkv, *weights, *tables]
    outputs = run(trt, "Predict2QkNormRope", inputs, 3, q_scale=0.125, **attributes)
    q, k, v = qkv.cpu().chunk(3, dim=-1)
    rotary = Rotary(*(t.cpu() for t in tables))
    expected = [
        qk_norm_rope(q.contiguous(), weights[0].cpu(), rotary, 0.125),
        qk_norm_rope(k.contiguous(), weights[1].cpu(), rotary),
        v.reshape(2, -1, heads, head_dim),
    ]
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_close(actual, wanted.transpose(1, 2) if heads_first else wanted)
