# SPDX-License-Identifier: Apache-2.0
"""Pictures and clips as files: reading inputs, writing results whole, looking into a clip."""

import contextlib
import io
import math
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import MAX_FILE_BYTES

if TYPE_CHECKING:  # Pillow and PyAV are loaded by the few functions that need them
    from PIL import Image

AnyPath = str | os.PathLike[str]
Frames = npt.NDArray[np.uint8]  # [F, H, W, RGB]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_SUFFIXES = (".mp4",)

_THUMBNAIL = 320  # pixels; a sheet of 93 full-size frames would be too large to open
_GAP = 2


def input_kind(path: AnyPath) -> Literal["image", "video"]:
    """Whether a file is a picture or a clip, by its extension in any letter case.

    Raises:
        InvalidRequestError: it is neither.
    """
    suffix = Path(path).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    raise InvalidRequestError(
        f"input {os.fspath(path)} is neither a picture ({' '.join(IMAGE_SUFFIXES)}) "
        f"nor a clip ({' '.join(VIDEO_SUFFIXES)})"
    )


def read_input(path: AnyPath) -> dict[str, bytes]:
    """The request field that carries the file, `image` or `video`, and its bytes.

    Raises:
        InvalidRequestError: the file can't be an input; the message says why.
    """
    kind, file = input_kind(path), Path(path)
    if not file.is_file():
        state = "is not a file" if file.exists() else "does not exist"
        raise InvalidRequestError(f"input {file} {state}")
    size = file.stat().st_size
    if size == 0:
        raise InvalidRequestError(f"input {file} is empty")
    if size > MAX_FILE_BYTES:  # less may be too much for a server, which says so itself
        raise InvalidRequestError(
            f"input {file} has {size} bytes; a request holds {MAX_FILE_BYTES} at most. Cut or shrink it"
        )
    return {kind: file.read_bytes()}


def write_whole(path: AnyPath, data: bytes) -> None:
    """Write a file in one go: other readers see the old one or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename across file systems would be a copy.
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_picture(path: AnyPath, picture: "Image.Image") -> None:
    """Write a picture whole, in the format its extension names."""
    data = io.BytesIO()
    picture.save(data, "PNG" if Path(path).suffix.lower() == ".png" else "JPEG")
    write_whole(path, data.getvalue())


def decode_clip(path: AnyPath) -> Frames:
    """All frames of a clip.

    Raises:
        InvalidRequestError: there is no such file, or no video in it.
    """
    import av

    file = Path(path)
    if not file.is_file():
        raise InvalidRequestError(f"clip {file} does not exist")
    try:
        with av.open(str(file)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError) as error:
        raise InvalidRequestError(f"clip {file} can't be decoded: {error}") from error
    if not frames:
        raise InvalidRequestError(f"clip {file} holds no frames")
    return np.stack(frames)


def contact_sheet(frames: Frames, columns: int = 0) -> "Image.Image":
    """All frames side by side, row by row, each with its number; 0 columns: about a square of them."""
    from PIL import Image, ImageDraw

    count, height, width, _ = frames.shape
    scale = min(1.0, _THUMBNAIL / max(height, width))
    cell = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = min(columns or _square_columns(count, *cell), count)
    rows = -(-count // columns)
    step_x, step_y = cell[0] + _GAP, cell[1] + _GAP
    sheet = Image.new("RGB", (columns * step_x - _GAP, rows * step_y - _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for index, frame in enumerate(frames):
        x, y = index % columns * step_x, index // columns * step_y
        sheet.paste(Image.fromarray(frame).resize(cell), (x, y))
        draw.rectangle(draw.textbbox((x + 1, y), str(index)), fill="black")
        draw.text((x + 1, y), str(index), fill="white")
    return sheet


def _square_columns(count: int, width: int, height: int) -> int:
    return max(1, round(math.sqrt(count * height / width)))
