# SPDX-License-Identifier: Apache-2.0
"""The toy world: one coloured shape that moves over a plain background, with a caption that says so.

A scene is a look (colour, shape, background), a motion, a place and a size. The actor moves `SPEED`
pixels a frame and never leaves the picture. Two kinds of scenes are kept from training. Six of the 54 looks
are unseen: no training clip has one, with any motion. Of every other look one motion is held out: what is asked
for in these words was never trained, though each word was, beside most others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from predict2_spec import video
from predict2_spec.video import SPATIAL_STRIDE

Frames = NDArray[np.uint8]  # [F, H, W, RGB]
Rgb = tuple[float, float, float]  # 0..255
Split = Literal["train", "held-out", "unseen"]

COLOURS: Mapping[str, Rgb] = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (40, 70, 220),
    "yellow": (240, 210, 40),
    "purple": (165, 50, 190),
    "cyan": (50, 205, 215),
}
SHAPES = ("circle", "rectangle", "triangle")
BACKGROUNDS: Mapping[str, Rgb] = {"white": (240, 240, 240), "grey": (128, 128, 128), "black": (16, 16, 16)}  # fmt: skip
MOTIONS: Mapping[str, tuple[int, int]] = {  # direction along x and y; y grows downwards
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
NUM_FRAMES = 13
# A latent cell is 8 pixels and a latent frame 4 frames: at this speed the actor moves one for one.
SPEED = 2.0  # pixels a frame
MARGIN = 0.75  # pixels between the actor and the picture's edge, at least
# The actor starts in the middle of a latent cell, or of a patch of the denoisers where it has the room: every
# shape comes in few positions to its patch, so few that a small network learns them in an hour.
CELL = SPATIAL_STRIDE  # pixels
PATCH = video.PATCH * CELL
# A size by the picture's shorter side. What lies between two shapes must look like neither, even this small: of
# one area, no two silhouettes share more than seven tenths of their pixels.
RADII: Mapping[int, float] = {48: 9.5, 64: 14.0}
# From the centre of the shape's box to its sides and to its top, in radii.
_REACH = {"circle": (1.1, 1.1), "rectangle": (1.18, 0.56), "triangle": (1.18, 1.02)}

Look = tuple[str, str, str]  # colour, shape, background
LOOKS: tuple[Look, ...] = tuple(product(COLOURS, SHAPES, BACKGROUNDS))
# One of each colour, two of each shape and of each background.
UNSEEN: frozenset[Look] = frozenset(
    (colour, SHAPES[i % 3], tuple(BACKGROUNDS)[(i // 3 + i) % 3])
    for i, colour in enumerate(COLOURS)
)


@dataclass(frozen=True)
class Scene:
    """What is seen: the centre (`x`, `y`) is that of the first frame, in pixels from the top left."""

    colour: str
    shape: str
    background: str
    motion: str
    x: float
    y: float
    radius: float

    @property
    def look(self) -> Look:
        """What a single picture shows."""
        return self.colour, self.shape, self.background

    def centre(self, frame: int) -> tuple[float, float]:
        """The actor's centre in a frame."""
        dx, dy = MOTIONS[self.motion]
        return self.x + dx * SPEED * frame, self.y + dy * SPEED * frame


@cache
def combinations(split: Split, motion: str = "") -> tuple[tuple[Look, str], ...]:
    """The looks and motions of a split; with `motion` given those with that one."""
    names = tuple(MOTIONS)

    def split_of(index: int, name: str) -> Split:
        if LOOKS[index] in UNSEEN:
            return "unseen"
        return "held-out" if names[index % len(names)] == name else "train"

    return tuple(
        (look, name)
        for index, look in enumerate(LOOKS)
        for name in names
        if split_of(index, name) == split and motion in ("", name)
    )


def random_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    split: Split = "train",
    motion: str = "",
    places: Sequence[int] = (PATCH, CELL),
) -> Scene:
    """A scene whose actor has room for its whole way in a picture of width x height pixels.

    Args:
        rng: the only source of chance.
        width: pixels.
        height: pixels.
        split: which looks and motions to draw from.
        motion: one of MOTIONS; empty for any.
        places: the actor starts in the middle of squares of that many pixels, the first that leave it room.
    """
    choices = combinations(split, motion)
    (colour, shape, background), motion = choices[rng.integers(len(choices))]
    radius = RADII[64 if min(width, height) >= 64 else 48]
    way = SPEED * (NUM_FRAMES - 1)

    def start(size: int, direction: int, reach: float) -> float:
        low = radius * reach + MARGIN + way * (direction < 0)
        high = size - radius * reach - MARGIN - way * (direction > 0)
        middles = (np.arange(side / 2, size, side) for side in places)
        fitting = (at[(low <= at) & (at <= high)] for at in middles)
        return float(rng.choice(next(at for at in fitting if len(at))))

    x, y = map(start, (width, height), MOTIONS[motion], _REACH[shape])
    return Scene(colour, shape, background, motion, x, y, radius)


def coverage(shape: str, x: float, y: float, radius: float, size: tuple[int, int]) -> NDArray[np.float32]:  # fmt: skip
    """How much of each pixel the shape covers, 0..1, [H, W]; its box is centred at (x, y)."""
    height, width = size
    columns, rows = np.arange(width) + 0.5 - x, np.arange(height)[:, None] + 0.5 - y
    if shape == "circle":
        inside = 1.1 * radius - np.hypot(columns, rows)
    elif shape == "rectangle":
        wide, tall = (radius * reach for reach in _REACH[shape])
        inside = np.minimum(wide - np.abs(columns), tall - np.abs(rows))
    else:  # equilateral, its tip up: all three sides are `inner` from the centre of mass
        inner = 0.68 * radius
        rows = rows - inner / 2
        sides = (rows, columns * 0.75**0.5 - rows / 2, -columns * 0.75**0.5 - rows / 2)
        inside = inner - np.maximum(np.maximum(sides[0], sides[1]), sides[2])
    return (inside + 0.5).clip(0, 1).astype(np.float32)  # a soft edge, one pixel wide


def draw(
    scene: Scene,
    width: int,
    height: int,
    num_frames: int = NUM_FRAMES,
    palette: Mapping[str, Rgb] | None = None,
) -> Frames:
    """The scene as a clip, UINT8 [num_frames, height, width, 3].

    Args:
        scene: what to draw.
        width: pixels.
        height: pixels.
        num_frames: 1 for a picture.
        palette: other colours than the usual by the words of the scene.
    """
    named = {**COLOURS, **BACKGROUNDS, **(palette or {})}
    back, front = (np.array(named[w], np.float32) for w in (scene.background, scene.colour))
    covers = np.stack(
        [
            coverage(scene.shape, *scene.centre(frame), scene.radius, (height, width))
            for frame in range(num_frames)
        ]
    )[..., None]
    return (back + covers * (front - back) + np.float32(0.5)).astype(np.uint8)


_SUBJECTS = ("a {colour} {shape}", "the {colour} {shape}", "one {colour} {shape}")
_SHAPE_WORDS = {"circle": ("circle", "ball"), "rectangle": ("rectangle", "bar"), "triangle": ("triangle",)}  # fmt: skip
_PLACES = ("on a {background} background", "in front of a {background} background", "over {background}")  # fmt: skip
_WAYS = ("moves {motion}", "moves to the {motion}", "slides {motion}", "is moving {motion}", "goes {motion}")  # fmt: skip
_RESTS = ("stays still", "is still", "rests", "")
_ORDERS = ("{subject} {way} {place}", "{place} {subject} {way}", "{place} , {subject} {way}")


def plain_caption(scene: Scene) -> str:
    """The caption in its first wording: "a red circle moves left on a grey background"."""
    way = "stays still" if scene.motion == "still" else f"moves {scene.motion}"
    return f"a {scene.colour} {scene.shape} {way} on a {scene.background} background"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption in one of many wordings; half of them are the plain one."""
    if rng.random() < 0.5:
        return plain_caption(scene)

    def pick(choices: Sequence[str]) -> str:
        return choices[rng.integers(len(choices))]

    way = pick(_RESTS if scene.motion == "still" else _WAYS)
    if scene.motion in ("up", "down"):
        way = way.replace(" to the", "")
    order = pick(_ORDERS)
    text = order.format(subject=pick(_SUBJECTS), way=way, place=pick(_PLACES))
    text = text.format(
        colour=scene.colour,
        shape=pick(_SHAPE_WORDS[scene.shape]),
        background=scene.background,
        motion=scene.motion,
    )
    return " ".join(text.split())


def vocabulary() -> tuple[str, ...]:
    """Every word that captions are made of, sorted."""
    patterns = " ".join((*_SUBJECTS, *_PLACES, *_WAYS, *_RESTS, *_ORDERS))
    words = {word for word in patterns.split() if "{" not in word}
    words.update(*_SHAPE_WORDS.values(), COLOURS, BACKGROUNDS, MOTIONS)
    return tuple(sorted(words))
