# SPDX-License-Identifier: Apache-2.0
"""Plans without TensorRT or a GPU: a context that keeps TensorRT's rules stands for the one, the CPU for the other."""

import ctypes
from collections import deque
from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from predict2_runtime.engines import plan
from predict2_runtime.engines.memory import Memory
from predict2_runtime.engines.plan import Plan
from predict2_spec.errors import InvalidRequestError, ServerError

Mode = Enum("Mode", "INPUT OUTPUT")
Place = Enum("Place", "DEVICE HOST")
FLOAT = SimpleNamespace(name="FLOAT")
MODULE = SimpleNamespace(
    TensorLocation=Place,
    TensorIOMode=Mode,
    ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=1),
)
LARGEST = 64  # elements of an input


class Context:
    """y = a + b, from the addresses and shapes that it was given."""

    def __init__(self, failing):
        self.failing = failing  # steps that fail
        self.shapes, self.addresses = {}, {}
        self.memory = None

    def set_input_shape(self, name, shape):
        if f"shape of {name}" in self.failing:
            return False
        self.shapes[name] = shape
        self.memory = None  # TensorRT wants to be asked for its size again
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def infer_shapes(self):
        if "inference" in self.failing or self.shapes["a"] != self.shapes["b"]:
            raise RuntimeError("a and b differ")
        return []

    def get_tensor_shape(self, name):
        return self.shapes["a"]

    def update_device_memory_size_for_shapes(self):
        return 4 * self.shapes["a"][0]

    def set_device_memory(self, address, size):
        self.memory = address, size

    def execute_async_v3(self, stream):
        address, size = self.memory
        assert size >= self.update_device_memory_size_for_shapes()
        ctypes.memset(address, 7, size)  # of which nobody else may want anything now
        if "launch" in self.failing:
            return False
        count = self.shapes["a"][0]
        a, b, y = (
            np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses[name]))
            for name in ("a", "b", "y")
        )
        np.add(a, b, out=y)
        return True


class Engine:
    """An ICudaEngine with inputs a and b and the output y."""

    names = ("a", "b", "y")
    num_io_tensors = len(names)

    def __init__(self):
        self.failing = set()

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_dtype(self, name):
        return FLOAT

    def get_tensor_location(self, name):
        return Place.DEVICE

    def get_tensor_mode(self, name):
        return Mode.OUTPUT if name == "y" else Mode.INPUT

    def get_tensor_shape(self, name):
        return (-1,)

    def get_tensor_profile_shape(self, name, index):
        return [(1,), (4,), (LARGEST,)]

    def create_runtime_config(self):
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda strategy: None)

    def create_execution_context(self, config):
        return Context(self.failing)


@pytest.fixture
def memory(monkeypatch):
    """Memory on the CPU, whose one stream runs everything at once."""

    @contextmanager
    def device(_):
        yield

    stream = SimpleNamespace(cuda_stream=1, wait_event=lambda event: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda stream: None))
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(plan, "bindings", lambda flavour: MODULE)
    log = SimpleNamespace(errors=deque(maxlen=4))
    monkeypatch.setattr(plan, "tensorrt_log", lambda flavour: log)
    return Memory(torch.device("cpu"))


def check(run, count):
    a, b = torch.rand(count), torch.rand(count)
    assert torch.equal(run({"a": a, "b": b})["y"], a + b)


def test_calls_of_any_shapes_follow_each_other(memory):
    run = Plan("sum", "tensorrt", Engine(), memory, 0)
    for count in (4, 4, 64, 1, 64, 4):
        check(run, count)


def test_plans_that_share_memory_follow_it_when_it_grows(memory):
    first, second = (Plan("sum", "tensorrt", Engine(), memory, 0) for _ in range(2))
    for run, count in ((first, 4), (second, 64), (first, 4), (first, 8), (second, 64)):
        check(run, count)


@pytest.mark.parametrize("step", ["shape of a", "shape of b", "inference", "launch"])
@pytest.mark.parametrize("following", [4, 8, 2])
def test_a_call_after_one_that_failed_is_answered(memory, step, following):
    engine = Engine()
    run = Plan("sum", "tensorrt", engine, memory, 0)
    check(run, 4)
    engine.failing.add(step)
    with pytest.raises(ServerError, match=r"tensorrt failed on .* of sum with inputs of \[\[8\]"):
        run({"a": torch.rand(8), "b": torch.rand(8)})
    engine.failing.clear()
    check(run, following)


def test_shapes_that_contradict_each_other_are_refused_in_tensorrts_words(memory):
    run = Plan("sum", "tensorrt", Engine(), memory, 0)
    with pytest.raises(ServerError, match=r"on shapes of sum .*\[\[4\], \[8\]\]: a and b differ"):
        run({"a": torch.rand(4), "b": torch.rand(8)})
    check(run, 4)


def test_what_the_memory_has_no_room_for_leaves_room_for_less(memory, monkeypatch):
    run = Plan("sum", "tensorrt", Engine(), memory, 0)
    check(run, 4)
    empty = torch.empty

    def full(size, **options):
        if options["dtype"] == torch.uint8 and size == 4 * LARGEST:
            raise torch.OutOfMemoryError("the GPU is full")
        return empty(size, **options)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        run({"a": torch.rand(LARGEST), "b": torch.rand(LARGEST)})
    check(run, 4)
    monkeypatch.setattr(torch, "empty", empty)
    check(run, LARGEST)


def test_inputs_outside_the_profile_never_reach_the_context(memory):
    run = Plan("sum", "tensorrt", Engine(), memory, 0)
    for shape in ((0,), (LARGEST + 1,), (4, 4), ()):
        with pytest.raises(InvalidRequestError, match="sum: a is"):
            run({"a": torch.zeros(shape), "b": torch.zeros(4)})
    check(run, 4)
