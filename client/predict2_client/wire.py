# SPDX-License-Identifier: Apache-2.0
"""Requests into Triton messages, and answers into results."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from predict2_spec.critic import MAX_TRIALS, Judged
from predict2_spec.critic import from_json as ranking_from_json
from predict2_spec.errors import InvalidRequestError, ServerError
from predict2_spec.limits import MAX_FILE_BYTES
from predict2_spec.requests import Request, Video2WorldRequest
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
    TRACKING,
    Tensor,
    field_tensor,
)
from predict2_spec.tracking import (
    LEASE_PARAMETER,
    LEASE_WAITS_PARAMETER,
    Action,
    RequestState,
    check_request_id,
)

_TASK = GENERATE.inputs[0]
_CLIP, _NUM_TRIALS, _SEED = CRITIC.inputs
_RESPONSES, _SCORE = CRITIC.outputs
_NUM_GENERATIONS, _NUM_CRITIC_TRIALS = BEST_OF_N.inputs[-2:]
_RANKING = BEST_OF_N.outputs[-1]
_REQUEST_ID, _ACTION = TRACKING.inputs
_STATE = TRACKING.outputs[0]


@dataclass(frozen=True)
class Result:
    """What a request made."""

    media: bytes  # an encoded jpg, png or mp4, as metadata.media_type says
    metadata: Metadata
    frames: npt.NDArray[np.uint8] | None = None  # [F, H, W, RGB], only with return_frames
    ranking: tuple[Judged, ...] = ()  # best first, only of best_of_n


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
    if not 0 < len(clip) <= MAX_FILE_BYTES:
        raise InvalidRequestError(
            f"the clip has {len(clip)} bytes; it must hold something, and {MAX_FILE_BYTES} "
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


def tracking_request(request_id: str, action: Action) -> Any:
    """The ModelInferRequest that asks `tracking` about a request.

    Raises:
        InvalidRequestError: the id can't be one.
    """
    check_request_id(request_id)
    message = service_pb2.ModelInferRequest(model_name=TRACKING.name, id=request_id)
    _add_input(message, _REQUEST_ID, request_id)
    _add_input(message, _ACTION, action)
    return message


def set_terms(message: Any, priority: int, lease_s: int, timeout_s: float) -> None:
    """Write into a ModelInferRequest how it is to be run; 0 and infinity: nothing is said."""
    if priority:
        message.parameters["priority"].uint64_param = priority
    if lease_s:
        message.parameters[LEASE_PARAMETER].int64_param = lease_s
        message.parameters[LEASE_WAITS_PARAMETER].bool_param = True
    if timeout_s < math.inf:
        # In microseconds; whole milliseconds, because people read it in an error.
        message.parameters["timeout"].int64_param = max(1, round(timeout_s * 1e3)) * 1000


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
        frames, ranking = outputs.as_numpy(FRAMES.name), outputs.as_numpy(_RANKING.name)
        return Result(
            media.tobytes(),
            Metadata.from_json(metadata.item().decode()),
            frames if frames is not None and frames.size else None,
            () if ranking is None else ranking_from_json(ranking.item().decode()),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
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


def read_tracking(response: Any) -> tuple[RequestState, Result | None]:
    """How far a request is, and its result where `tracking` was asked for it and has it.

    Raises:
        ServerError: it can't be read.
    """
    outputs = InferResult(response)
    try:
        state = RequestState.from_json(outputs.as_numpy(_STATE.name).item().decode())
        media = outputs.as_numpy(MEDIA.name)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _unreadable(error) from error
    if media is None or not media.size:
        return state, None
    result = read_response(response)
    return state, result if isinstance(result, Result) else None


def _unreadable(error: Exception) -> ServerError:
    return ServerError(
        f"the server's answer can't be read ({error}); client and server may be of "
        "different versions"
    )
