# SPDX-License-Identifier: Apache-2.0
"""Triton tensors to arrays and back, and from arrays to a request."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, MAX_TEXT_BYTES, Limits
from predict2_spec.presets import Task
from predict2_spec.requests import FIELD_TYPES, REQUESTS, Request
from predict2_spec.tensors import MODELS, Model, Tensor

_NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "UINT8": np.uint8,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
    "BOOL": np.bool_,
}


def to_tensors(pb_utils: Any, tensors: Iterable[Tensor], arrays: Mapping[str, Any]) -> list[Any]:
    """Arrays as Triton tensors; those left out or None stay out."""
    return [
        pb_utils.Tensor(tensor.name, _to_array(tensor, arrays[tensor.name]))
        for tensor in tensors
        if arrays.get(tensor.name) is not None
    ]


def _to_array(tensor: Tensor, value: Any) -> Any:
    if tensor.dtype == "BYTES":
        texts = [value] if isinstance(value, str) else value
        return np.array([text.encode() for text in texts], dtype=np.object_)
    array = np.asarray(value, dtype=_NUMPY[tensor.dtype])
    return np.ascontiguousarray(array.reshape(1) if array.ndim == 0 else array)


def from_tensors(tensors: Iterable[Tensor], received: Iterable[Any]) -> dict[str, Any]:
    """Triton tensors as arrays; BYTES become a list of str.

    Raises:
        InvalidRequestError: a text is not UTF-8, or longer than any may be.
    """
    dtypes = {tensor.name: tensor.dtype for tensor in tensors}
    return {t.name(): _from_array(t, dtypes[t.name()]) for t in received if t is not None}


def require(model: Model, arrays: Mapping[str, Any]) -> None:
    """Triton counts a request's inputs and lets an optional one stand in for a missing one.

    Raises:
        InvalidRequestError: an input that isn't optional is missing.
    """
    missing = [t.name for t in model.inputs if not t.optional and t.name not in arrays]
    if missing:
        raise InvalidRequestError(f"{missing[0]} is missing; {model.name} can't do without it")


def _from_array(tensor: Any, dtype: str) -> Any:
    array = tensor.as_numpy()
    return _decode(tensor.name(), array) if dtype == "BYTES" else array


def _decode(name: str, array: Any) -> list[str]:
    longest = max(map(len, array.ravel()), default=0)
    if longest > MAX_TEXT_BYTES:
        raise InvalidRequestError(
            f"{name} has {longest} bytes; no text may have more than {MAX_TEXT_BYTES}. Shorten it"
        )
    try:
        return [bytes(item).decode() for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"{name} is not valid UTF-8: {error}") from error


def parse_request(task: Task, arrays: Mapping[str, Any], limits: Limits = LIMITS) -> Request:
    """The request a task model was sent.

    Raises:
        InvalidRequestError: a field is missing, not one value, or outside its limits.
    """
    kind = REQUESTS[task]
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(arrays) - known)
    if unknown:
        raise InvalidRequestError(f"{task} takes no {', '.join(unknown)}; leave it out")
    require(MODELS[task], arrays)
    request = kind(**{name: _scalar(name, array) for name, array in arrays.items()})
    request.check(limits)
    return request


def parse_number(name: str, array: Any, least: int, most: int) -> int:
    """The one whole number an input holds.

    Raises:
        InvalidRequestError: it holds several, or one outside its limits.
    """
    if len(array) != 1 or not least <= int(array[0]) <= most:
        raise InvalidRequestError(
            f"{name} {list(array)[:4]} must be one number from {least} to {most}"
        )
    return int(array[0])


def _scalar(name: str, array: Any) -> Any:
    kind = FIELD_TYPES[name]
    if kind is bytes:
        return array.tobytes()
    if len(array) != 1:
        raise InvalidRequestError(f"{name} holds {len(array)} values; give one")
    return kind(array[0])
