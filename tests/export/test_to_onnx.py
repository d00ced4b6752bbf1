# SPDX-License-Identifier: Apache-2.0
"""Lowering without the weights in memory: they go from the checkpoint to the file one at a time."""

import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.networks.dit import Dit
from predict2_export.recipes import _dit_graphs as dit_graphs
from predict2_export.to_onnx import hollow_graphs, write_onnx
from predict2_spec.networks import DIT_TOY_TEXT2IMAGE

SPEC = replace(DIT_TOY_TEXT2IMAGE, num_blocks=1)


class Checkpoint:
    """Weights that are made when they are read; counts how many are alive at once."""

    def __init__(self, module, dtype=torch.float32):
        torch.manual_seed(0)
        self.values = {n: torch.randn(p.shape) / 8 for n, p in module.named_parameters()}
        self.alive = weakref.WeakSet()
        self.most_alive = 0
        self.weights = {
            name: StoredTensor(tuple(value.shape), dtype, partial(self.read, value, dtype))
            for name, value in self.values.items()
        }

    def read(self, value, dtype):
        fresh = value.to(dtype, copy=True)
        self.alive.add(fresh)
        self.most_alive = max(self.most_alive, len(self.alive))
        return fresh


def lower(path, dtype=torch.float32, report=lambda line: None):
    network, graphs = hollow_graphs(partial(Dit, SPEC), partial(dit_graphs, SPEC), dtype)
    checkpoint = Checkpoint(network)
    write_onnx(graphs["main"], path, network, checkpoint.weights, report)
    return checkpoint


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    path = tmp_path_factory.mktemp("lowered") / "main.onnx"
    return path, lower(path)


def test_one_weight_is_in_memory_at_a_time(lowered):
    _, checkpoint = lowered
    assert checkpoint.most_alive == 1


def test_a_hollow_network_has_no_storage_and_keeps_its_own_tables():
    network, _ = hollow_graphs(partial(Dit, SPEC), partial(dit_graphs, SPEC))
    assert all(isinstance(parameter, FakeTensor) for parameter in network.parameters())
    assert torch.equal(network.pos_embedder.rows, Dit(SPEC).pos_embedder.rows)


def test_the_graph_answers_as_a_network_with_these_weights(lowered):
    path, checkpoint = lowered
    network = Dit(SPEC).eval()
    network.load_state_dict(checkpoint.values)
    torch.manual_seed(1)
    inputs = [torch.randn(1, 16, 2, 4, 8), torch.rand(1, 2), torch.randn(1, 5, SPEC.text_width)]
    with torch.no_grad():
        expected = network(*inputs).numpy()
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    (actual,) = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    # float32 on both sides; sums in another order give about 1e-6 of values around 1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_weights_are_written_in_the_dtype_of_the_network(tmp_path):
    path = tmp_path / "main.onnx"
    checkpoint = lower(path, torch.bfloat16)
    model = onnx.load(str(path))
    written = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, value in checkpoint.values.items():
        assert written[name].data_type == onnx.TensorProto.BFLOAT16
        bits = torch.frombuffer(bytearray(written[name].raw_data), dtype=torch.bfloat16)
        assert torch.equal(bits, value.bfloat16().flatten())
    # The rotation tables stay as exact as the original keeps them.
    assert written["pos_embedder.rows"].data_type == onnx.TensorProto.FLOAT


def test_long_writing_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("predict2_export.to_onnx._TOLD_EVERY", 2**18)
    lines = []
    lower(tmp_path / "main.onnx", report=lines.append)
    assert len(lines) >= 3
    assert lines[0].endswith("GB written")
