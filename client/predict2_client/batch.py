# SPDX-License-Identifier: Apache-2.0
"""Many requests from one JSON file, in the original's format; one that fails doesn't stop the rest."""

import difflib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from predict2_spec.errors import (
    BlockedError,
    InvalidRequestError,
    Predict2Error,
    ServerUnavailableError,
    in_words,
)
from predict2_spec.presets import Task
from predict2_spec.requests import FIELD_TYPES, Request

from . import media, outputs
from .settings import make_request, setting_names
from .wire import Result

Status = Literal["done", "skipped", "failed", "blocked", "cancelled", "not run"]

OUTPUT_KEY: dict[Task, str] = {
    "text2image": "output_image",
    "video2world": "output_video",
    "text2world": "output_video",
}
INPUT_KEY = "input_video"  # holds a picture's path as well
_TYPE_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}

# How long a client tries again where the server is busy or restarts; one that stays away isn't worth waiting for.
RETRY_FOR_S = 600.0


@dataclass(frozen=True)
class Item:
    """One entry of a batch file."""

    index: int  # from 0, as default names count
    output: Path
    fields: Mapping[str, Any] = field(default_factory=dict)  # of its request
    input_path: Path | None = None
    problem: str = ""  # why it can't run; empty: nothing known against it


Generate = Callable[[Request, Item], Result]


@dataclass(frozen=True)
class Outcome:
    """What became of an item."""

    item: Item
    status: Status
    seconds: float = 0.0
    message: str = ""


def load_batch(path: media.AnyPath, task: Task, settings: Mapping[str, Any]) -> list[Item]:
    """Read a batch file; `settings` hold for every item that doesn't say otherwise.

    Raises:
        InvalidRequestError: the file is unreadable, or an item would overwrite what another needs.
    """
    file = Path(path)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequestError(
            f"batch file {file} can't be read: {error.strerror or error}"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(f"batch file {file} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise InvalidRequestError(f"batch file {file} must hold a list of objects, one an item")
    items = [_read_item(index, entry, task, settings) for index, entry in enumerate(entries)]
    _check_files(items, file)
    return items


def _read_item(index: int, entry: Any, task: Task, settings: Mapping[str, Any]) -> Item:
    suffix = outputs.SUFFIXES[task][0]
    output = Path(f"output_{index}{suffix}")
    try:
        if not isinstance(entry, dict):
            raise InvalidRequestError(f"the entry must be an object, not {entry!r:.40}")
        if OUTPUT_KEY[task] in entry:
            output = outputs.output_path(task, _typed(OUTPUT_KEY[task], entry[OUTPUT_KEY[task]]))
        input_path = _input_path(entry) if task == "video2world" else None
        own = _own_settings(entry, task)
    except InvalidRequestError as error:
        return Item(index, output, problem=str(error))
    return Item(index, output, {**settings, **own}, input_path)


def _input_path(entry: Mapping[str, Any]) -> Path:
    if INPUT_KEY not in entry:
        raise InvalidRequestError(f"{INPUT_KEY} is missing: the picture or clip to go on from")
    return Path(_typed(INPUT_KEY, entry[INPUT_KEY]))


def _own_settings(entry: Mapping[str, Any], task: Task) -> dict[str, Any]:
    if "prompt" not in entry:
        raise InvalidRequestError("prompt is missing")
    names = setting_names(task)
    files = {OUTPUT_KEY[task]} | ({INPUT_KEY} if task == "video2world" else set())
    for key in entry:
        if key not in names and key not in files:
            known = [*names, *files]
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise InvalidRequestError(f"key {key!r:.60} is unknown; {hint}")
    return {name: _typed(name, entry[name]) for name in names if name in entry}


def _typed(name: str, value: Any) -> Any:
    """A JSON value as the type its field has."""
    wanted = FIELD_TYPES.get(name, str)
    if wanted is float and type(value) is int:
        return float(value)
    if name == "resolution" and type(value) is int:  # 720 reads as naturally as "720"
        return str(value)
    if type(value) is not wanted:
        raise InvalidRequestError(f"{name} {value!r:.40} must be {_TYPE_NAMES[wanted]}")
    return value


def _identity(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def _check_files(items: Sequence[Item], batch_file: Path) -> None:
    """Refuse items that would overwrite each other's outputs, an input read before, or the batch file."""
    owners = {_identity(batch_file): "the batch file"}
    for item in items:
        if item.input_path is not None:  # an earlier item's output may well be a later one's input
            owners.setdefault(_identity(item.input_path), f"the input of item {item.index}")
        for path in (item.output, outputs.side_path(item.output)):
            mine = f"an output of item {item.index}"
            owner = owners.setdefault(_identity(path), mine)
            if owner != mine:
                raise InvalidRequestError(
                    f"item {item.index} would write {path}, which is {owner}; name another output"
                )


def run_batch(
    items: Sequence[Item],
    task: Task,
    generate: Generate,
    *,
    resume: bool = False,
) -> Iterator[Outcome]:
    """Run the items in order and tell what became of each, as soon as it is known.

    Args:
        items: from `load_batch`.
        task: what they ask for.
        generate: runs one request, that of the item it is given; raises ServerUnavailableError where trying on is
            of no use.
        resume: skip an item whose output an equal request has already made.
    """
    stopped = ""
    for item in items:
        if stopped:
            yield Outcome(item, "not run", message=stopped)
            continue
        began = time.monotonic()
        status: Status = "failed"
        message = ""
        try:
            status = _run_item(item, task, generate, resume)
        except KeyboardInterrupt:
            status, stopped = "cancelled", "interrupted"
        except ServerUnavailableError as error:
            message, stopped = str(error), f"the server was gone at item {item.index}"
        except BlockedError as error:
            status, message = "blocked", str(error)
        except (Predict2Error, OSError) as error:
            message = in_words(error)
        yield Outcome(item, status, time.monotonic() - began, message)


def _run_item(item: Item, task: Task, generate: Generate, resume: bool) -> Status:
    if item.problem:
        raise InvalidRequestError(item.problem)
    values = dict(item.fields)
    if item.input_path is not None:
        values.update(media.read_input(item.input_path))
    request = make_request(task, item.output, values)
    if resume and outputs.is_recorded(item.output, request):
        return "skipped"
    outputs.prepare(item.output)
    outputs.save(item.output, generate(request, item), request)
    return "done"


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 when everything is there, 130 when interrupted, else 1."""
    statuses = {outcome.status for outcome in outcomes}
    if "cancelled" in statuses:
        return 130
    return 1 if statuses & {"failed", "blocked", "not run"} else 0
