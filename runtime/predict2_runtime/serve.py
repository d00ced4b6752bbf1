# SPDX-License-Identifier: Apache-2.0
"""Requests to responses: the edge between Triton's Python backend and plain functions."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from predict2_spec.errors import Predict2Error, RequestCancelledError, ServerError
from predict2_spec.results import Event
from predict2_spec.tensors import ERROR, EVENT, Model

from .outcomes import Outcome, Status, status_of
from .progress import Progress
from .stages import Arrays
from .status import to_failure, to_triton
from .tensors import from_tensors, require, to_tensors

log = logging.getLogger(__name__)

Handler = Callable[[Arrays, Progress], dict[str, Any]]
Observe = Callable[[Outcome], None]


def _ignore(told: object) -> None:
    """Nobody wants to know."""


def serve_stage(
    pb_utils: Any, model: Model, requests: Sequence[Any], stage: Callable[[Arrays], dict[str, Any]]
) -> list[Any]:
    """Answer each request of a stage by itself; one that fails doesn't touch the others."""
    return serve(pb_utils, model, requests, lambda inputs, _: stage(inputs))


def serve(
    pb_utils: Any,
    model: Model,
    requests: Sequence[Any],
    handler: Handler,
    *,
    observe: Observe = _ignore,
) -> list[Any]:
    """Answer each request of a pipeline by itself; it blocks until the work is done.

    `observe` is told how each request ended, before it is answered.
    """
    responses = []
    for request in requests:
        try:
            outputs = _run(model, request, handler, _ignore, observe)
            responses.append(
                pb_utils.InferenceResponse(to_tensors(pb_utils, model.outputs, outputs))
            )
        except Predict2Error as error:
            responses.append(pb_utils.InferenceResponse(error=to_triton(pb_utils, error)))
    return responses


def serve_stream(
    pb_utils: Any,
    model: Model,
    requests: Sequence[Any],
    handler: Handler,
    *,
    observe: Observe = _ignore,
) -> None:
    """Answer each request of a decoupled model: progress events as they happen, then the result or the error.

    `observe` is told how each request ended, before that is sent.
    """
    for request in requests:
        sender = request.get_response_sender()

        def emit(event: Event, sender: Any = sender) -> None:
            tensors = to_tensors(pb_utils, [EVENT], {EVENT.name: event.to_json()})
            sender.send(pb_utils.InferenceResponse(tensors))

        try:
            outputs = _run(model, request, handler, emit, observe)
        except Predict2Error as error:
            outputs = {ERROR.name: to_failure(error).to_json()}
        response = pb_utils.InferenceResponse(to_tensors(pb_utils, model.outputs, outputs))
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _run(
    model: Model,
    request: Any,
    handler: Handler,
    emit: Callable[[Event], None],
    observe: Observe,
) -> dict[str, Any]:
    """The outputs for one request; whatever goes wrong comes out as an error of ours."""

    def check() -> None:
        if request.is_cancelled():
            raise RequestCancelledError("the request was cancelled by its caller")

    progress = Progress(emit, check)
    status: Status = "failed"
    try:
        inputs = from_tensors(model.inputs, request.inputs())
        require(model, inputs)
        outputs = handler(inputs, progress)
        status = "ok"
        return outputs
    except Predict2Error as error:
        status = status_of(error)
        raise
    except Exception as error:  # the last resort: this request fails, the next is served
        log.exception("%s: request %s failed", model.name, request.request_id())
        raise ServerError(
            f"{model.name} failed on this request; the server's log says why"
        ) from error
    finally:
        observe(Outcome(model.name, status, progress.all_seconds(), progress.all_steps()))
