# SPDX-License-Identifier: Apache-2.0
"""Says what a picture or clip of the toy world shows, by plain image analysis: no network has a part in it.

A frame is read by explanation: the background is what the border shows, the actor's pixels are those that
differ from it, and each shape's silhouette of the same area and centre is laid over them. The best one
must overlap nearly all of them, so a melted shape, a second actor or a blank picture has no shape.
A clip has a shape when its silhouette is the best in every frame, melts in none and fits on average as well as
a picture's must: half a pixel on one frame's edge isn't a fault, an actor that loses its form is.
A clip has a motion when the actor keeps its look and goes a plausible step in every frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Frames, Rgb, Scene

# Each limit is some way past what rendered truth needs, far below what a person would let pass.
_COLOUR_GAP = 70.0  # RGB distance from a named colour, at most
_CONTRAST = 40.0  # RGB distance from the background that makes a pixel the actor's
_MIN_AREA = 60.0  # pixels
_OVERLAP = 0.86  # of the silhouette and the actor's pixels: intersection over union
_CLEAR = 0.03  # by how much the best silhouette beats the next, at least
_MELTED = 0.8  # overlap under which a frame of a clip has lost the shape
_MAX_STEP = 4.5  # pixels between two frames; the actor's own speed is 2
_BACKWARDS = 1.5  # pixels a frame against or across the motion, at most
_STILL = 3.0  # pixels from the first place, at most, of an actor that stays
_MOVED = 12.0  # pixels from first to last frame, at least, of one that moves over 13 frames
_WIDE = 1.18 / 0.56  # a rectangle's width by its height
_STRAIGHT = 0.25  # part of the way that it may drift sideways

Pixels = NDArray[np.float64]  # [H, W, 3] or [H, W]


@dataclass(frozen=True)
class FrameReading:
    """What one frame shows; an empty word where nothing fits."""

    colour: str
    shape: str
    background: str
    x: float  # the actor's centre in pixels; NaN without one
    y: float
    area: float  # pixels
    overlaps: Mapping[str, float]  # of every shape's silhouette, 0..1; empty without an actor

    @property
    def look(self) -> tuple[str, str, str]:
        """Colour, shape and background."""
        return self.colour, self.shape, self.background


@dataclass(frozen=True)
class ClipReading:
    """What a clip shows."""

    frames: tuple[FrameReading, ...]
    shape: str  # of all frames; empty where one has lost it
    path: str  # the motion of whatever is there, whole or melted: one of MOTIONS, or empty
    steady: bool  # every frame shows the first one's colour and background

    @property
    def motion(self) -> str:
        """The path of an actor that keeps its look throughout; else empty."""
        first = self.frames[0]
        whole = self.steady and first.colour and first.background and self.shape
        return self.path if whole else ""


@dataclass(frozen=True)
class Agreement:
    """Which parts of a prompt a picture or clip keeps; in a clip, throughout all frames."""

    colour: bool
    shape: bool
    background: bool
    first: bool  # the first frame's colour, shape and background
    path: bool  # the actor's centre goes where it should, in every frame; True for a picture
    motion: bool  # so it does, and the actor keeps its look

    @property
    def look(self) -> bool:
        """Colour, shape and background at once."""
        return self.colour and self.shape and self.background

    @property
    def all(self) -> bool:
        """Everything at once."""
        return self.look and self.motion


def read_frame(picture: NDArray[np.uint8]) -> FrameReading:
    """Read a picture, UINT8 [H, W, 3]."""
    pixels = picture.astype(np.float64)
    back = np.median(_border(pixels), axis=0)
    background = _nearest(back, BACKGROUNDS)
    contrast = np.linalg.norm(pixels - back, axis=-1)
    if (contrast > _CONTRAST).sum() < _MIN_AREA:
        return FrameReading("", "", background, float("nan"), float("nan"), 0.0, {})
    front = np.median(pixels[_core(contrast > _CONTRAST)], axis=0)
    colour = _nearest(front, COLOURS)
    # How far along the line from background to actor each pixel is: its coverage.
    line = front - back
    cover = ((pixels - back) @ line / max(float(line @ line), 1.0)).clip(0, 1)
    mask = cover > 0.5  # so a soft edge is no fault, wherever its middle is
    area = float(mask.sum())
    rows, columns = np.nonzero(mask)
    x, y = float(columns.mean()) + 0.5, float(rows.mean()) + 0.5
    overlaps = {s: _overlap(mask, _silhouette(s, x, y, area, mask.shape)) for s in SHAPES}
    return FrameReading(colour, _fitting(overlaps), background, x, y, area, overlaps)


def _fitting(overlaps: Mapping[str, float]) -> str:
    """The shape whose silhouette fits well and clearly best, or nothing."""
    best, following = sorted(overlaps, key=overlaps.__getitem__, reverse=True)[:2]
    return best if overlaps[best] >= max(_OVERLAP, overlaps[following] + _CLEAR) else ""


def _shape_throughout(readings: Sequence[FrameReading]) -> str:
    """The shape that fits on average and is the best in every frame, melted in none; or nothing."""
    if not all(reading.overlaps for reading in readings):
        return ""
    shape = _fitting({s: float(np.mean([r.overlaps[s] for r in readings])) for s in SHAPES})
    kept = all(r.overlaps[shape] >= max(_MELTED, *r.overlaps.values()) for r in readings if shape)
    return shape if kept else ""


def read_clip(frames: Frames) -> ClipReading:
    """Read a clip, UINT8 [F, H, W, 3]."""
    readings = tuple(read_frame(frame) for frame in frames)
    plain = [(reading.colour, reading.background) for reading in readings]
    steady = all(words == plain[0] for words in plain)
    places = np.array([(reading.x, reading.y) for reading in readings])
    return ClipReading(readings, _shape_throughout(readings), _motion(places), steady)


def agreement(frames: Frames, scene: Scene) -> Agreement:
    """Compare a clip, or a picture as a clip of one frame, with what was asked for."""
    reading = read_clip(frames)
    return Agreement(
        first=reading.frames[0].look == scene.look,
        colour=all(frame.colour == scene.colour for frame in reading.frames),
        shape=reading.shape == scene.shape,
        background=all(frame.background == scene.background for frame in reading.frames),
        path=len(frames) == 1 or reading.path == scene.motion,
        motion=len(frames) == 1 or reading.motion == scene.motion,
    )


def _border(pixels: Pixels) -> Pixels:
    sides = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    return np.concatenate(sides)


def _nearest(colour: Pixels, named: Mapping[str, Rgb]) -> str:
    gaps = {name: float(np.linalg.norm(colour - np.array(rgb))) for name, rgb in named.items()}
    best = min(gaps, key=gaps.__getitem__)
    return best if gaps[best] <= _COLOUR_GAP else ""


def _core(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels whose four neighbours are in the mask too, or the mask if there are none."""
    inner = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis)
    return inner if inner.any() else mask


def _silhouette(
    shape: str, x: float, y: float, area: float, size: tuple[int, ...]
) -> NDArray[np.bool_]:
    """The pixels of a shape of that area whose centre of mass is at (x, y)."""
    height, width = size
    columns, rows = np.arange(width) + 0.5 - x, (np.arange(height) + 0.5 - y)[:, None]
    if shape == "circle":
        inside = rows**2 + columns**2 <= area / np.pi
    elif shape == "rectangle":
        tall = (area / _WIDE) ** 0.5 / 2
        inside = (np.abs(rows) <= tall) & (np.abs(columns) <= _WIDE * tall)
    else:  # equilateral, tip up: a third of its height lies below the centre of mass
        side = (4 * area / 3**0.5) ** 0.5
        tall = side * 3**0.5 / 2
        half = (rows + 2 * tall / 3) / 3**0.5  # half its width in this row
        inside = (rows <= tall / 3) & (np.abs(columns) <= half)
    return np.asarray(inside)


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def _motion(places: NDArray[np.float64]) -> str:
    """The motion that all the centres [F, 2] agree with, or nothing."""
    if len(places) < 2 or np.isnan(places).any():
        return ""
    if np.abs(places - places[0]).max() <= _STILL:
        return "still"
    steps = np.diff(places, axis=0)
    way = places[-1] - places[0]
    least = _MOVED * (len(places) - 1) / 12
    for name, direction in MOTIONS.items():
        along, across = way @ np.array(direction), way @ np.array(direction[::-1])
        if along < least or abs(across) > _STRAIGHT * along:
            continue
        forward = steps @ np.array(direction)
        plausible = forward.min() >= -_BACKWARDS and np.abs(steps).max() <= _MAX_STEP
        return name if plausible else ""
    return ""
