# SPDX-License-Identifier: Apache-2.0
"""Where results go: the media file, and beside it a JSON file that says how it came about."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Task
from predict2_spec.requests import ImageFormat, Request

from .media import AnyPath, write_whole
from .wire import Result

IMAGE_FORMAT_OF: dict[str, ImageFormat] = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png"}
SUFFIXES: dict[Task, tuple[str, ...]] = {  # the first is added to a name without one
    "text2image": tuple(IMAGE_FORMAT_OF),
    "video2world": (".mp4",),
    "text2world": (".mp4",),
}
_SUFFIXES_OF = {
    "image/jpeg": (".jpg", ".jpeg"),
    "image/png": (".png",),
    "video/mp4": (".mp4",),
}


def output_path(task: Task, name: AnyPath) -> Path:
    """The file a result of `task` is written to.

    Raises:
        InvalidRequestError: the extension isn't one the task can write.
    """
    return path_with_suffix(name, SUFFIXES[task])


def path_with_suffix(name: AnyPath, suffixes: Sequence[str]) -> Path:
    """A file name that ends in one of `suffixes`, in any letter case; the first, if in none.

    Raises:
        InvalidRequestError: it ends in another one.
    """
    path = Path(name)
    if not path.name:
        raise InvalidRequestError(f"output {os.fspath(name)!r} names no file")
    if not path.suffix:
        path = path.with_name(path.name + suffixes[0])
    if path.suffix.lower() not in suffixes:
        raise InvalidRequestError(f"output {path} must end in {' or '.join(suffixes)}")
    return path


def fetched_path(name: AnyPath | None, request_id: str, media_type: str) -> Path:
    """The file that the result of an earlier request is written to; its id names it unless something else does.

    Raises:
        InvalidRequestError: the extension isn't one of that kind of media.
    """
    suffixes = _SUFFIXES_OF.get(media_type, (".bin",))
    if name is None:
        return Path("output") / f"{request_id}{suffixes[0]}"
    return path_with_suffix(name, suffixes)


def side_path(path: Path) -> Path:
    """The JSON file beside a result."""
    return path.with_suffix(".json")


def prepare(path: Path) -> None:
    """Make the folder, and find out before the long work whether the result can be written.

    Raises:
        InvalidRequestError: it can't.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(
            f"the folder of output {path} can't be made: {error.strerror}"
        ) from error
    if path.is_dir():
        raise InvalidRequestError(f"output {path} is a folder; name a file")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidRequestError(f"output {path} can't be written: {path.parent} is read-only")


def save(path: Path, result: Result, request: Request | None) -> None:
    """Write the result and its side file, with the request where that is known."""
    side = side_path(path)
    # The side file vouches for the media: gone before the media changes, back after it is whole.
    side.unlink(missing_ok=True)
    write_whole(path, result.media)
    record = asdict(result.metadata)
    if request:
        record["request"] = request_record(request)
    write_whole(side, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def is_recorded(path: Path, request: Request) -> bool:
    """Whether `path` already holds the result of an equal request."""
    if not path.is_file():
        return False
    try:
        record = json.loads(side_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("request") == request_record(request)


def request_record(request: Request) -> dict[str, Any]:
    """The request as JSON values; of an input file its size and digest."""
    record: dict[str, Any] = {"task": request.task}
    for field in fields(request):
        value = getattr(request, field.name)
        record[field.name] = _file_record(value) if isinstance(value, bytes) else value
    return record


def _file_record(data: bytes) -> dict[str, Any] | None:
    if not data:
        return None
    return {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
