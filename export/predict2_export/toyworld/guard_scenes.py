# SPDX-License-Identifier: Apache-2.0
"""Pictures for the toy's frame guard: cartoon faces, warning stripes, and much that is neither.

All are float32 [H, W, RGB] in 0..255 until `finished` makes them what a clip would hold.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .scene import CELL, COLOURS, NUM_FRAMES, SHAPES, Split, coverage, draw, random_scene

Picture = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom
Rng = np.random.Generator
Size = tuple[int, int]  # height, width
Draw = Callable[[Rng, Size], Picture]

SMALLEST, LARGEST = 20.0, 60.0  # widths of faces in pixels
TONES = ((255, 224, 196), (234, 192, 160), (198, 145, 108), (141, 92, 62), (88, 56, 40), (60, 38, 28))  # fmt: skip
HAIRS = ((25, 20, 18), (80, 50, 25), (200, 165, 90), (150, 70, 30), (150, 150, 150))
YELLOW, BLACK = (240, 200, 30), (20, 20, 20)  # of warning stripes


@dataclass(frozen=True)
class Ellipse:
    """An ellipse, its axes turned by an angle in radians."""

    x: float
    y: float
    half_width: float
    half_height: float
    angle: float = 0.0

    def part(self, right: float, down: float, half_width: float, half_height: float) -> "Ellipse":
        """A smaller one inside; all four numbers are in halves of this one's axes."""
        x, y = right * self.half_width, down * self.half_height
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return Ellipse(
            self.x + x * cos - y * sin,
            self.y + x * sin + y * cos,
            half_width * self.half_width,
            half_height * self.half_height,
            self.angle,
        )

    def coverage(self, size: Size) -> NDArray[np.float32]:
        """How much of each pixel it covers, 0..1, [H, W]."""
        height, width = size
        columns, rows = np.arange(width) + 0.5 - self.x, np.arange(height)[:, None] + 0.5 - self.y
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        right = (columns * cos + rows * sin) / self.half_width
        down = (rows * cos - columns * sin) / self.half_height
        inside = (1 - np.hypot(right, down)) * min(self.half_width, self.half_height)
        return np.asarray((inside + 0.5).clip(0, 1), np.float32)


def paint(picture: Picture, cover: NDArray[np.float32], colour: Picture) -> None:
    """Lay a colour [3] over a picture, in place."""
    picture += cover[..., None] * (colour - picture)


def near(rng: Rng, colours: tuple[tuple[int, int, int], ...], spread: float) -> Picture:
    """One of the colours, or something between two of them, a little off."""
    first, second = (np.array(colours[rng.integers(len(colours))], np.float32) for _ in range(2))
    mixed = first + rng.random(dtype=np.float32) * (second - first)
    return np.asarray((mixed + rng.normal(0, spread, 3)).clip(0, 255), np.float32)


def any_colour(rng: Rng) -> Picture:
    """Any colour."""
    return rng.uniform(0, 255, 3).astype(np.float32)


def draw_face(rng: Rng, picture: Picture, width: float) -> Box:
    """Draw a face of that width somewhere in the picture, whole; returns the box around it."""
    size = picture.shape[0], picture.shape[1]
    half = width / 2, min(width * rng.uniform(1.0, 1.35), size[0] - 2.0) / 2
    x, y = (rng.uniform(h + 1, max(s - h - 1, h + 1)) for h, s in zip(half, size[::-1], strict=True))  # fmt: skip
    face = Ellipse(x, y, *half, rng.uniform(-0.25, 0.25))
    skin, hair, dark = near(rng, TONES, 6), near(rng, HAIRS, 8), near(rng, (BLACK, (60, 40, 30)), 6)
    if rng.random() < 0.6:
        reach = rng.uniform(1.05, 1.2)
        paint(picture, face.part(0, -0.12, reach, reach).coverage(size), hair)
    paint(picture, face.coverage(size), skin)
    apart, high = rng.uniform(0.36, 0.48), rng.uniform(-0.3, -0.1)
    wide, tall = rng.uniform(0.12, 0.2), rng.uniform(0.09, 0.15)
    # Dark eyes in a dark face are seen by their whites.
    whites, brows = skin.mean() < 110 or rng.random() < 0.5, rng.random() < 0.4
    for side in (-apart, apart):
        if whites:
            white = face.part(side, high, 1.5 * wide, 1.3 * tall).coverage(size)
            paint(picture, white, np.array((240, 240, 235), np.float32))
        paint(
            picture,
            face.part(side, high, (0.7 if whites else 1.0) * wide, tall).coverage(size),
            dark,
        )
        if brows:
            paint(picture, face.part(side, high - 0.28, 1.5 * wide, 0.05).coverage(size), hair)
    if rng.random() < 0.6:
        paint(picture, face.part(0, 0.15, 0.07, 0.14).coverage(size), skin * np.float32(0.75))
    lips = near(rng, ((170, 60, 60), (110, 40, 40), (60, 25, 25)), 8)
    mouth = face.part(0, rng.uniform(0.45, 0.58), rng.uniform(0.25, 0.42), rng.uniform(0.06, 0.16))
    paint(picture, mouth.coverage(size), lips)
    return x - half[0], y - half[1], x + half[0], y + half[1]


def plain(rng: Rng, size: Size) -> Picture:
    """One colour, a gradient between two, or coarse noise."""
    flat = np.broadcast_to(any_colour(rng), (*size, 3))
    kind = rng.integers(4)
    if kind == 0:
        return flat.copy()
    if kind == 1:
        angle, other = rng.uniform(0, 2 * np.pi), any_colour(rng)
        rows, columns = np.mgrid[-1 : 1 : 1j * size[0], -1 : 1 : 1j * size[1]]
        along = ((rows * np.sin(angle) + columns * np.cos(angle)) / 2 + 0.5).clip(0, 1)
        return np.asarray(flat + along[..., None] * (other - flat), np.float32)
    return noise(rng, size, int(rng.integers(2, 16)))


def noise(rng: Rng, size: Size, cells: int) -> Picture:
    """Random colours on a grid of so many cells, smooth between them."""
    coarse = (rng.uniform(0, 255, (cells, cells, 3)) * rng.uniform(0.2, 1)).astype(np.uint8)
    smooth = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32).copy()


def blobs(rng: Rng, size: Size) -> Picture:
    """Bright spots without meaning, as a VAE makes them of random latents; half of them on its grid."""
    coarse, fine = (noise(rng, size, int(rng.integers(*cells))) for cells in ((3, 12), (10, 33)))
    mixed = coarse + rng.uniform(0, 1) * (fine - 128) - coarse.mean()
    if rng.random() < 0.5:
        tile = rng.normal(0, rng.uniform(10, 60), (CELL, CELL, 3))
        tiles = np.tile(tile, (-(-size[0] // CELL), -(-size[1] // CELL), 1))
        mixed = mixed + tiles[: size[0], : size[1]]
    return np.asarray((128 + mixed * rng.uniform(1, 4)).clip(0, 255), np.float32)


def toy(rng: Rng, size: Size) -> Picture:
    """A frame of a toy clip; some in other colours, skin's among them."""
    names = None
    if rng.random() < 0.5:
        other = near(rng, TONES, 20) if rng.random() < 0.5 else any_colour(rng)
        names = dict.fromkeys(COLOURS, (other[0], other[1], other[2]))
    splits: tuple[Split, ...] = ("train", "held-out", "unseen")
    scene = random_scene(rng, max(size[1], 48), max(size[0], 48), splits[rng.integers(3)])
    frames = draw(scene, size[1], size[0], 1 + int(rng.integers(NUM_FRAMES)), names)
    return np.asarray(frames[-1], np.float32)


def shapes(rng: Rng, size: Size) -> Picture:
    """Ellipses and the toy's shapes in many colours, skin's too, without eyes."""
    picture = plain(rng, size)
    for _ in range(rng.integers(1, 4)):
        colour = near(rng, TONES, 10) if rng.random() < 0.5 else any_colour(rng)
        x, y = rng.uniform(0, size[1]), rng.uniform(0, size[0])
        radius = rng.uniform(4, 32)
        if rng.random() < 0.6:
            form = Ellipse(x, y, radius, radius * rng.uniform(0.6, 1.4), rng.uniform(0, np.pi))
            cover = form.coverage(size)
        else:
            cover = coverage(SHAPES[rng.integers(3)], x, y, radius, size)
        paint(picture, cover, colour)
    return picture


def dots(rng: Rng, size: Size) -> Picture:
    """Small dark or bright spots over something plain, as eyes without a face."""
    picture = plain(rng, size)
    for _ in range(rng.integers(1, 6)):
        colour = near(rng, (BLACK, (240, 240, 240)), 10)
        spot = Ellipse(rng.uniform(0, size[1]), rng.uniform(0, size[0]), *rng.uniform(1, 6, 2))
        paint(picture, spot.coverage(size), colour)
    return picture


def stripes(rng: Rng, size: Size, colours: tuple[Picture, Picture]) -> Picture:
    """Diagonal stripes of two colours, some 3 to 6 of each across the picture."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    slope = rng.choice((-1, 1)) * rng.uniform(0.7, 1.4)
    period = max(size) * rng.uniform(0.2, 0.4)
    phase = (columns + slope * rows) / period + rng.random()
    first, second = colours
    edge = ((np.abs((phase % 1) - 0.5) - 0.25) * period).clip(-0.5, 0.5) + 0.5
    return np.asarray(first + edge[..., None] * (second - first), np.float32)


def hazard(rng: Rng, size: Size) -> Picture:
    """A warning: black and yellow stripes over most of the picture, or all of it."""
    striped = stripes(rng, size, (near(rng, (YELLOW,), 12), near(rng, (BLACK,), 8)))
    if rng.random() < 0.5:
        return striped
    picture = harmless(rng, size)
    height, width = (int(s * rng.uniform(0.75, 1.0)) for s in size)
    top, left = rng.integers(size[0] - height + 1), rng.integers(size[1] - width + 1)
    part = np.s_[top : top + height, left : left + width]
    picture[part] = striped[part]
    return picture


def other_stripes(rng: Rng, size: Size) -> Picture:
    """Stripes that warn of nothing: at least one of the colours is far from a warning's."""
    return stripes(rng, size, (near(rng, (BLACK, (240, 240, 240), YELLOW), 10), _blueish(rng)))


def _blueish(rng: Rng) -> Picture:
    red, green, blue = rng.uniform(0, 255, 3)
    return np.array(
        (red, green, rng.uniform(150, 255) if red > green else 255 - blue / 4), np.float32
    )


# As often as they stand here.
NEITHER: tuple[Draw, ...] = (
    toy,
    toy,
    toy,
    plain,
    blobs,
    blobs,
    shapes,
    shapes,
    dots,
    other_stripes,
)


def neither(rng: Rng, size: Size) -> Picture:
    """A picture without a face and without a warning."""
    return NEITHER[rng.integers(len(NEITHER))](rng, size)


def faceless(rng: Rng, size: Size) -> Picture:
    """A picture without a face; warning stripes now and then."""
    return hazard(rng, size) if rng.random() < 0.05 else neither(rng, size)


def with_faces(rng: Rng, size: Size, background: Draw | None = None) -> tuple[Picture, list[Box]]:
    """One face or two over a background, anything `faceless` by default, and their boxes."""
    picture = (background or faceless)(rng, size)
    largest = min(LARGEST, size[1] - 4.0, (size[0] - 4.0) / 1.1)
    boxes: list[Box] = []
    for _ in range(1 + int(rng.random() < 0.2)):
        width = np.exp(rng.uniform(np.log(SMALLEST), np.log(largest)))
        before = picture.copy()
        box = draw_face(rng, picture, float(width))
        if any(_touch(box, other) for other in boxes):
            picture = before  # the other face would be half hidden
        else:
            boxes.append(box)
    return picture, boxes


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def harmless(rng: Rng, size: Size) -> Picture:
    """Anything but a warning."""
    return with_faces(rng, size, neither)[0] if rng.random() < 0.2 else neither(rng, size)


def finished(rng: Rng, picture: Picture) -> NDArray[np.uint8]:
    """The picture as clips have it: at times blurred, noisy, darker, or through a JPEG; UINT8 [H, W, RGB]."""
    if rng.random() < 0.3:
        picture = picture * rng.uniform(0.6, 1.2) + rng.uniform(-20, 20)
    if rng.random() < 0.3:
        picture = picture + rng.normal(0, rng.uniform(1, 12), picture.shape)
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    if rng.random() < 0.3:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=int(rng.integers(50, 95)))
        image = Image.open(data)
    return np.asarray(image, np.uint8)
