# SPDX-License-Identifier: Apache-2.0
"""The plain settings of a request, and a request made from settings and an output's name."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Task
from predict2_spec.requests import REQUESTS, Request

from .outputs import IMAGE_FORMAT_OF

# Files carry these, or the names of files decide them.
_NOT_SETTINGS = {"image", "video", "output_format", "return_frames"}


def setting_names(task: Task) -> tuple[str, ...]:
    """The request fields of `task` that a flag or a batch item can set."""
    return tuple(f.name for f in fields(REQUESTS[task]) if f.name not in _NOT_SETTINGS)


def setting_defaults(task: Task) -> dict[str, Any]:
    """Their defaults; the prompt has none."""
    names = setting_names(task)
    return {f.name: f.default for f in fields(REQUESTS[task]) if f.name in names[1:]}


def make_request(task: Task, output: Path, values: Mapping[str, Any]) -> Request:
    """A request whose result goes to `output`.

    Raises:
        InvalidRequestError: a value is outside its limits.
    """
    values = dict(values)
    if task == "text2image":
        values["output_format"] = IMAGE_FORMAT_OF[output.suffix.lower()]
    try:
        return REQUESTS[task](**values)
    except UnicodeEncodeError as error:
        raise InvalidRequestError(f"a text can't be written as UTF-8: {error.reason}") from error
