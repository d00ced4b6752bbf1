# SPDX-License-Identifier: Apache-2.0
"""Requests into Triton messages, answers into results, gRPC errors into this product's own."""

import re
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferResult, service_pb2
from tritonclient.utils import serialize_byte_tensor, triton_to_np_dtype

from predict2_spec.errors import (
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.requests import Request
from predict2_spec.results import Event, Failure, Metadata
from predict2_spec.tensors import (
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

# What Triton wraps around a message: an anonymous request id, the Python backend's preface
# and the trace of the model's own source.
_PREFACES = re.compile(
    r"^(?:\[request id: [^\]]*\] |in ensemble '[^']*', "
    r"|Failed to process the request\(s\) for model(?: instance)? '[^']*', message: "
    r"|failed to connect to all addresses; last error: \w+: )+"
)
_TRACE = re.compile(r"\n+At:\n.*", re.DOTALL)


@dataclass(frozen=True)
class Result:
    """What a request made."""

    media: bytes  # an encoded jpg, png or mp4, as metadata.media_type says
    metadata: Metadata
    frames: npt.NDArray[np.uint8] | None = None  # [F, H, W, RGB], only with return_frames


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
        raise ServerError(
            f"the server's answer can't be read ({error}); client and server may be of "
            "different versions"
        ) from error


def plain_message(text: str) -> str:
    """A server's error message without what Triton and gRPC wrap around it."""
    return _TRACE.sub("", _PREFACES.sub("", text)).strip() or "no reason was given"


def error_from(code: str, details: str, url: str) -> Predict2Error:
    """The error a gRPC status stands for; `code` is its name, such as INVALID_ARGUMENT."""
    text = plain_message(details)
    if code == "INVALID_ARGUMENT":
        return InvalidRequestError(text)
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
    if code == "UNAVAILABLE" or "Stream removed" in text:
        return ServerUnavailableError(
            f"the server at {url} is unavailable ({text}); predict2-serve starts one, "
            "`predict2 ready` waits until it is up"
        )
    return ServerError(text)
