# SPDX-License-Identifier: Apache-2.0
"""Requests to responses: the edge between Triton's Python backend and plain functions."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from predict2_spec.errors import Predict2Error, ServerError
from predict2_spec.results import Event
from predict2_spec.tensors import ERROR, EVENT, LANGUAGE_STAGES, Model

from .bls import REQUEST_ID, TRACE
from .door import check_caller
from .drain import run_folder
from .kept import Outputs
from .logs import begin_request, withhold
from .outcomes import Outcome, Status, status_of
from .progress import Progress
from .stages import Arrays
from .stalls import at_work
from .status import to_failure, to_triton
from .tensors import from_tensors, require, to_tensors
from .watch import Terms, Watch

log = logging.getLogger(__name__)

Handler = Callable[[Arrays, Progress], Outputs]
Observe = Callable[[Outcome], None]
_ANY_TERMS = Terms()


def _ignore(told: object) -> None:
    """Nobody wants to know."""


def serve_stage(
    pb_utils: Any,
    model: Model,
    requests: Sequence[Any],
    stage: Callable[[Arrays], dict[str, Any]],
    *,
    observe: Observe = _ignore,
) -> list[Any]:
    """Answer each request of a stage by itself; one that fails doesn't touch the others."""
    terms = Terms(check_caller=partial(check_caller, model, environment=os.environ))
    # Those of language models wait for one another, as long as the owner lets an answer take.
    folder = None if model in LANGUAGE_STAGES else run_folder(os.environ)

    def handler(inputs: Arrays, progress: Progress) -> Outputs:
        with at_work(folder, model.name):
            return stage(inputs)

    return serve(pb_utils, model, requests, handler, terms=terms, observe=observe)


def serve(
    pb_utils: Any,
    model: Model,
    requests: Sequence[Any],
    handler: Handler,
    *,
    terms: Terms = _ANY_TERMS,
    observe: Observe = _ignore,
) -> list[Any]:
    """Answer each request of a pipeline by itself; it blocks until the work is done.

    Args:
        pb_utils: Triton's module.
        model: what goes in and out.
        requests: Triton's.
        handler: does the work.
        terms: where requests with an id are followed, and how long one may take.
        observe: is told how each request ended, before it is answered.
    """
    responses = []
    for request in requests:
        try:
            outputs = _run(model, request, handler, _ignore, terms, observe)
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
    terms: Terms = _ANY_TERMS,
    observe: Observe = _ignore,
) -> None:
    """Answer each request of a decoupled model: progress events as they happen, then the result or the error.

    The arguments are those of `serve`.
    """
    for request in requests:
        sender = request.get_response_sender()

        def emit(event: Event, sender: Any = sender) -> None:
            tensors = to_tensors(pb_utils, [EVENT], {EVENT.name: event.to_json()})
            sender.send(pb_utils.InferenceResponse(tensors))

        try:
            outputs = _run(model, request, handler, emit, terms, observe)
        except Predict2Error as error:
            outputs = {ERROR.name: to_failure(error).to_json()}
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if request.is_cancelled():  # the less is sent to a stream that is gone, the better
            sender.send(flags=final)
        else:
            tensors = to_tensors(pb_utils, model.outputs, outputs)
            sender.send(pb_utils.InferenceResponse(tensors), flags=final)


def _run(
    model: Model,
    request: Any,
    handler: Handler,
    emit: Callable[[Event], None],
    terms: Terms,
    observe: Observe,
) -> Outputs:
    """The outputs for one request; whatever goes wrong comes out as an error of ours."""
    watch = Watch(request, emit, terms)
    progress = Progress(watch.tell, watch.check)
    status: Status = "failed"
    carried = REQUEST_ID.set(request.request_id()), TRACE.set(request.trace())
    begin_request(request.request_id())
    try:
        outputs = _work(model, request, handler, watch, progress, terms)
        watch.made(outputs)
        status = "ok"
        return outputs
    except Predict2Error as error:
        status = status_of(error)
        watch.failed(error)
        raise
    finally:
        REQUEST_ID.reset(carried[0])
        TRACE.reset(carried[1])
        _tell(observe, Outcome(model.name, status, progress.all_seconds(), progress.all_steps()))
        begin_request("")


def _tell(observe: Observe, outcome: Outcome) -> None:
    try:
        observe(outcome)
    except Exception:  # whatever counting trips over, the work is done and its result is somebody's
        log.exception("%s: a request that ended couldn't be counted", outcome.model)


def _work(
    model: Model,
    request: Any,
    handler: Handler,
    watch: Watch,
    progress: Progress,
    terms: Terms,
) -> Outputs:
    try:
        terms.check_caller(request)
        inputs = from_tensors(model.inputs, request.inputs())
        withhold(text for value in inputs.values() if isinstance(value, list) for text in value)
        require(model, inputs)
        kept = watch.follow(model, inputs)
        return handler(inputs, progress) if kept is None else kept
    except Predict2Error:
        raise
    except Exception as error:  # the last resort: this request fails, the next is served
        log.exception("%s: a request failed", model.name)  # whose id the line says, cleaned
        raise ServerError(
            f"{model.name} failed on this request; the server's log says why"
        ) from error
