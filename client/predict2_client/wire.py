# SPDX-License-Identifier: Apache-2.0
"""Requests into Triton messages, answers into results, gRPC errors into this product's own."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from predict2_spec.critic import MAX_TRIALS, Judged
from predict2_spec.critic import from_json as ranking_from_json
from predict2_spec.errors import (
    BlockedError,
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import BLOCKED_PREFIX, Verdict
from predict2_spec.requests import LIMITS, Request, Video2WorldRequest
from predict2_spec.results import Event, Failure, Metadata
from predict2_spec.tensors import (
    BEST_OF_N,
    CRITIC,
    ERROR,
    EVENT,
    FRAMES,
    GENERATE,
    MEDIA,
    METADATA,
    Tensor,
    field_tensor,
)

_TASK = GENERATE.inputs[0]
_CLIP, _NUM_TRIALS, _SEED = CRITIC.inputs
_RESPONSES, _SCORE = CRITIC.outputs
_NUM_GENERATIONS, _NUM_CRITIC_TRIALS = BEST_OF_N.inputs[-2:]
_RANKING = BEST_OF_N.outputs[-1]

# What Triton wraps around a message: an anonymous request id, the Python backend's preface
# and the trace of the model's own source.
_PREFACES = re.compile(
    r"^(?:\[request id: [^\]]*\] |in ensemble '[^']*', "
    r"|Failed to process the request\(s\) for model(?: instance)? '[^']*', message: "
    r"|failed to connect to all addresses; last error: \w+: |unavailable: )+"
)
_TRACE = re.compile(r"\n+At:\n.*", re.DOTALL)


@dataclass(frozen=True)
class Result:
    """What a request made."""

    media: bytes  # an encoded jpg, png or mp4, as metadata.media_type says
    metadata: Metadata
    frames: npt.NDArray[np.uint8] | None = None  # [F, H, W, RGB], only with return_frames


@dataclass(frozen=True)
class Judgement:
    """What the critic said of a clip."""

    responses: tuple[str, ...]  # one a trial
    score: float  # 0..1, as predict2_spec.critic.score


def infer_request(request: Request, model: str) -> Any:
    """The ModelInferRequest that carries `request` to a task's model or to `generate`."""
    message = service_pb2.ModelInferRequest(model_name=model)
    if model == GENERATE.name:
        _add_input(message, _TASK, request.task)
    for field in fields(request):
        value = getattr(request, field.name)
        # An empty value that is also the default says nothing the server doesn't assume; an
        # empty one that isn't (a clip's negative prompt) must be said.
        if value or value != field.default:
            _add_input(message, field_tensor(field.name), value)
    return message


def best_of_n_request(request: Video2WorldRequest, num_generations: int, num_trials: int) -> Any:
    """The ModelInferRequest that asks for the best of several clips."""
    message = infer_request(request, BEST_OF_N.name)
    _add_input(message, _NUM_GENERATIONS, num_generations)
    _add_input(message, _NUM_CRITIC_TRIALS, num_trials)
    return message


def judge_request(clip: bytes, num_trials: int, seed: int) -> Any:
    """The ModelInferRequest that asks the critic about an encoded clip.

    Raises:
        InvalidRequestError: a value is outside its limits.
    """
    if not 0 < len(clip) <= LIMITS.media_bytes:
        raise InvalidRequestError(
            f"the clip has {len(clip)} bytes; it must hold something, and {LIMITS.media_bytes} "
            "bytes at most. Cut or shrink it"
        )
    if not 1 <= num_trials <= MAX_TRIALS:
        raise InvalidRequestError(f"num_trials {num_trials} must be between 1 and {MAX_TRIALS}")
    if not 0 <= seed < 2**32:
        raise InvalidRequestError(f"seed {seed} must be between 0 and {2**32 - 1}")
    message = service_pb2.ModelInferRequest(model_name=CRITIC.name)
    _add_input(message, _CLIP, clip)
    _add_input(message, _NUM_TRIALS, num_trials)
    _add_input(message, _SEED, seed)
    return message


def _add_input(message: Any, tensor: Tensor, value: str | bytes | float) -> None:
    if tensor.dtype == "UINT8":
        shape, content = [len(value)], value  # type: ignore[arg-type]
    elif tensor.dtype == "BYTES":
        text = np.array([str(value).encode()], dtype=np.object_)
        shape, content = [1], serialize_byte_tensor(text).item()
    else:
        shape, content = [1], _scalar_bytes(tensor, value)
    message.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=shape)
    message.raw_input_contents.append(content)


def _scalar_bytes(tensor: Tensor, value: Any) -> bytes:
    try:
        return np.array([value], triton_to_np_dtype(tensor.dtype)).tobytes()
    except OverflowError as error:
        raise InvalidRequestError(f"{tensor.name} {value} is far too large") from error


def read_response(response: Any) -> Event | Failure | Result:
    """What a ModelInferResponse holds: an event of a stream, why it failed, or the result.

    Raises:
        ServerError: none of them is in it, or it can't be read.
    """
    outputs = InferResult(response)
    try:
        event = outputs.as_numpy(EVENT.name)
        if event is not None and event.size:
            return Event.from_json(event.item().decode())
        failure = outputs.as_numpy(ERROR.name)
        if failure is not None and failure.size:
            return Failure.from_json(failure.item().decode())
        media, metadata = outputs.as_numpy(MEDIA.name), outputs.as_numpy(METADATA.name)
        if media is None or metadata is None:
            raise ValueError(f"no {MEDIA.name} or no {METADATA.name}")
        frames = outputs.as_numpy(FRAMES.name)
        return Result(
            media.tobytes(),
            Metadata.from_json(metadata.item().decode()),
            frames if frames is not None and frames.size else None,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(error) from error


def read_judgement(response: Any) -> Judgement:
    """What a ModelInferResponse of the critic holds.

    Raises:
        ServerError: it can't be read.
    """
    answer = InferResult(response)
    try:
        texts = tuple(text.decode() for text in answer.as_numpy(_RESPONSES.name).tolist())
        score = float(answer.as_numpy(_SCORE.name).item())
        if not 0 <= score <= 1:
            raise ValueError(f"score {score}")
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(error) from error
    return Judgement(texts, score)


def read_ranking(response: Any) -> tuple[Judged, ...]:
    """The ranking of a ModelInferResponse of `best_of_n`, beside the result.

    Raises:
        ServerError: it can't be read.
    """
    try:
        return ranking_from_json(InferResult(response).as_numpy(_RANKING.name).item().decode())
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ServerError:
    return ServerError(
        f"the server's answer can't be read ({error}); client and server may be of "
        "different versions"
    )


def plain_message(text: str) -> str:
    """A server's error message without what Triton and gRPC wrap around it."""
    return _TRACE.sub("", _PREFACES.sub("", text)).strip() or "no reason was given"


def failure_error(failure: Failure, url: str) -> Predict2Error:
    """The error that ended a stream."""
    error = error_from(failure.status, failure.message, url, answered=True)
    if isinstance(error, BlockedError) and failure.verdict:
        error.verdict = _read_verdict(failure.verdict)
    return error


def _read_verdict(values: Mapping[str, Any]) -> Verdict | None:
    try:
        return Verdict.from_json(json.dumps(values))
    except (TypeError, ValueError, AttributeError):  # of another version; the message says enough
        return None


def error_from(code: str, details: str, url: str, *, answered: bool = False) -> Predict2Error:
    """The error a gRPC status stands for.

    Args:
        code: its name, such as INVALID_ARGUMENT.
        details: its message.
        url: of the server.
        answered: the server is up, so UNAVAILABLE is its own word, such as for a critic it hasn't.
    """
    text = plain_message(details)
    if code == "INVALID_ARGUMENT":
        refused = BlockedError if text.startswith(BLOCKED_PREFIX) else InvalidRequestError
        return refused(text)
    if code == "CANCELLED":
        return RequestCancelledError(text)
    if code == "DEADLINE_EXCEEDED":
        return RequestCancelledError(
            "no result within the time limit, so the request was cancelled; allow it more time"
        )
    # Streams report a model that isn't there without any status.
    if "unknown model" in text:
        return ServerUnavailableError(
            f"the server at {url} can't take this now ({text}): it is starting or stopping, "
            "or its preset doesn't serve this task; `predict2 ready` waits until it is up"
        )
    if code == "UNAVAILABLE" and answered:
        return ServerUnavailableError(f"the server at {url} can't do this: {text}")
    if code == "UNAVAILABLE" or "Stream removed" in text:
        return ServerUnavailableError(
            f"the server at {url} is unavailable ({text}); predict2-serve starts one, "
            "`predict2 ready` waits until it is up"
        )
    return ServerError(text)
