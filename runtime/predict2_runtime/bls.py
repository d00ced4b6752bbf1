# SPDX-License-Identifier: Apache-2.0
"""Calling one Triton model from another: the only `exec()` and the only look at its error."""

import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

from predict2_spec.tensors import Model

from .door import carried
from .status import from_triton
from .tensors import from_tensors, to_tensors

# Of the request that is worked on here; whatever it calls carries it on, into the other models' logs too.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

# Triton's trace of the same request, of which the traces of those calls become parts.
TRACE: ContextVar[Any] = ContextVar("trace", default=None)

# call(model, name=array, ...) -> {name: array}; raises what the model answered with
Call = Callable[..., dict[str, Any]]


def bls_call(pb_utils: Any) -> Call:
    """A function that calls models of this server."""
    return partial(_call, pb_utils)


def _call(pb_utils: Any, model: Model, **inputs: Any) -> dict[str, Any]:
    trace = TRACE.get()
    request = pb_utils.InferenceRequest(
        model_name=model.name,
        inputs=to_tensors(pb_utils, model.inputs, inputs),
        requested_output_names=[tensor.name for tensor in model.outputs],
        request_id=REQUEST_ID.get(),
        parameters=carried(os.environ),
        **({} if trace is None else {"trace": trace}),
    )
    response = request.exec()
    if response.has_error():
        raise from_triton(pb_utils, response.error(), model.name)
    return from_tensors(model.outputs, response.output_tensors())
