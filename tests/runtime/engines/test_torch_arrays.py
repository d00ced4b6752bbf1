# SPDX-License-Identifier: Apache-2.0
"""Placing arrays with torch; the CPU takes the GPU's place."""

import numpy as np
import pytest
import torch

from predict2_runtime.engines import InstalledEngine
from predict2_runtime.engines.torch_arrays import as_numpy, as_tensor, for_kernels, placement
from predict2_spec.manifest import Manifest


class Foreign:
    """An array of some other library."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_a_tensor_that_is_there_already_is_not_copied():
    tensor = torch.ones(3)
    assert as_tensor(tensor, "cpu") is tensor
    assert as_tensor(Foreign(tensor), "cpu").data_ptr() == tensor.data_ptr()


def test_numpy_arrays_are_taken_whatever_their_memory_is_like():
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    locked = array.copy()
    locked.flags.writeable = False
    for given in (array, locked, array[::-1], array.T, array[:, 1:]):
        assert np.array_equal(as_tensor(given, "cpu").numpy(), given)
    as_tensor(locked, "cpu").fill_(0)
    assert np.array_equal(locked, array)  # what couldn't be written to wasn't


def test_what_kernels_cannot_take_as_it_lies_is_copied():
    whole = torch.arange(4096.0)
    begin = -whole.data_ptr() % 256 // 4  # the first element that is aligned
    inside = whole[begin : begin + 128].view(8, 16)
    assert for_kernels(inside) is inside
    for given in (whole[begin + 1 : begin + 65], inside.T, inside[:, 1:]):
        taken = for_kernels(given)
        assert taken.is_contiguous()
        assert taken.data_ptr() != given.data_ptr()
        assert torch.equal(taken, given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_floats_come_back_as_float32(dtype):
    array = as_numpy(torch.tensor([1.5, -2], dtype=dtype))
    assert array.dtype == np.float32
    assert array.tolist() == [1.5, -2]


def test_integers_come_back_as_they_are():
    for dtype in (np.uint8, np.int64):
        array = np.array([3, 250]).astype(dtype)
        assert as_numpy(as_tensor(array, "cpu")).dtype == dtype


def test_a_graph_on_numpy_places_its_inputs_and_fetches_its_outputs():
    manifest = Manifest("vae_decoder", "toy", "tensorrt", "bf16", "sm90", "", "", {}, {})

    def graph(inputs):
        assert isinstance(inputs["x"], torch.Tensor)
        return {"y": -inputs["x"].bfloat16()}

    call = InstalledEngine(manifest, {"main": graph}, placement("cpu")).on_numpy("main")
    answer = call({"x": np.float32([1, 2])})["y"]
    assert isinstance(answer, np.ndarray)
    assert answer.dtype == np.float32
    assert answer.tolist() == [-1, -2]
