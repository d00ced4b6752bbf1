# SPDX-License-Identifier: Apache-2.0
import resource
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest


class TritonError:
    UNKNOWN, INTERNAL, INVALID_ARG, UNAVAILABLE, CANCELLED = range(5)

    def __init__(self, message, code=INTERNAL):
        self.message, self.code = (lambda: message), (lambda: code)


class Tensor:
    def __init__(self, name, array):
        self.name, self.as_numpy = (lambda: name), (lambda: array)


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.outputs = {t.name(): t.as_numpy() for t in output_tensors}
        self.error = error


class Request:
    """What Triton hands to a model: tensors in, and for a decoupled model a sender that keeps what was sent."""

    def __init__(self, cancelled=False, request_id="7", timeout_us=0, parameters="{}", **arrays):
        tensors = [Tensor(name, np.asarray(array)) for name, array in arrays.items()]
        self.sent = []
        self.inputs = lambda: tensors
        self.is_cancelled = lambda: cancelled
        self.request_id = lambda: request_id
        self.trace = lambda: None  # as where Triton traces nothing
        self.timeout = lambda: timeout_us
        self.parameters = lambda: parameters
        self.get_response_sender = lambda: SimpleNamespace(
            send=lambda response=None, flags=0: self.sent.append((response, flags))
        )


@pytest.fixture
def pb_utils():
    """A stand-in for the module that only exists inside Triton; the live-server tests use the real one."""
    return SimpleNamespace(
        TritonError=TritonError,
        Tensor=Tensor,
        InferenceResponse=InferenceResponse,
        Request=Request,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
    )


@pytest.fixture
def full_disk():
    """full_disk(size): a block in which no file can be made larger, as on a disk that is full."""

    @contextmanager
    def full_disk(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full_disk
