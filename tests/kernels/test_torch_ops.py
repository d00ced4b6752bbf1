# SPDX-License-Identifier: Apache-2.0
"""What the operators have in common: their checks, and where they launch."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from predict2_kernels import torch_ops
from predict2_kernels.torch_ops import adaln_modulate, gated_residual, gated_residual_modulate

ROWS = (4, 8)
OTHER_WIDTH, OTHER_ROWS = (4, 16), (6, 8)
GATED, TWO, FEW, MANY, NONE = (2, 24), (2, 16), (2, 8), (4, 32), (0, 24)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("operator", "shapes", "message"),
    [
        (adaln_modulate, (ROWS, FEW), "doesn't fit"),
        (adaln_modulate, (ROWS, NONE), "doesn't fit"),
        (adaln_modulate, (ROWS, (3, 24)), "doesn't fit"),
        (gated_residual, (ROWS, ROWS, TWO), "doesn't fit"),
        (gated_residual, (ROWS, ROWS, MANY), "don't fit"),
        (gated_residual, (ROWS, OTHER_ROWS, GATED), "don't fit"),
        (gated_residual, (ROWS, OTHER_WIDTH, GATED), "don't fit"),
        (gated_residual_modulate, (ROWS, OTHER_ROWS, GATED, TWO), "don't fit"),
        (gated_residual_modulate, (ROWS, ROWS, GATED, FEW), "doesn't fit"),
        (gated_residual_modulate, (ROWS, ROWS, GATED, MANY), "differ in frames: 2 and 4"),
    ],
)
def test_operators_refuse_shapes_that_do_not_fit(operator, shapes, message, fake):
    given = [torch.ones(shape) for shape in shapes]
    if fake:
        mode = FakeTensorMode()
        given = [mode.from_tensor(t) for t in given]
    with pytest.raises(ValueError, match=message):
        operator(*given)


def test_tensors_on_several_devices_are_refused_by_name():
    here, there = torch.empty(1), torch.empty(1, device="meta")
    assert torch_ops._device(here, here) == here.device
    with pytest.raises(ValueError, match="on one device, not on cpu, meta"):
        torch_ops._device(here, there)


def test_a_launch_happens_on_the_device_of_its_inputs(monkeypatch):
    current, calls = ["the one the program chose"], []

    @contextmanager
    def device(of):
        current.append(of)
        yield
        current.pop()

    def launcher(*arguments):
        calls.append((current[-1], *arguments))
        return 0

    monkeypatch.setattr(torch.cuda, "device", device)

    def stream():
        return SimpleNamespace(cuda_stream=f"stream of {current[-1]}")

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch_ops, "_library", lambda: SimpleNamespace(launcher=launcher))
    torch_ops._launch("launcher", [torch.empty(1), torch.empty(2)], 1, 2.0, None)
    assert calls == [(torch.device("cpu"), 1, 2.0, None, "stream of cpu")]


@pytest.mark.gpu
def test_operator_serves_tensors_that_are_not_on_the_current_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x, m = torch.randn(*ROWS, device="cuda:1"), torch.randn(*TWO, device="cuda:1")
    actual = adaln_modulate(x, m)
    torch.testing.assert_close(actual.cpu(), adaln_modulate(x.cpu(), m.cpu()))
