# SPDX-License-Identifier: Apache-2.0
"""Loss curves and contact sheets as PNG files."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_WIDTH, _HEIGHT, _BORDER = 640, 320, 24
_POINTS = 300


def write_curve(path: Path, title: str, values: Sequence[float]) -> None:
    """Draw a curve on a logarithmic scale, averaged to a few hundred points."""
    if len(values) < 2:
        return
    parts = np.array_split(np.maximum(np.asarray(values), 1e-8), min(_POINTS, len(values)))
    points = np.log10([part.mean() for part in parts])
    low, high = float(points.min()), float(points.max())
    x = np.linspace(_BORDER, _WIDTH - _BORDER, len(points))
    y = _HEIGHT - _BORDER - (points - low) / max(high - low, 1e-6) * (_HEIGHT - 2 * _BORDER)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    pen.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=(40, 70, 220), width=2)
    note = f"{title}: {len(values)} steps, {10**high:.4g} to {10**low:.4g}, log scale; last {10 ** float(points[-1]):.4g}"
    pen.text((_BORDER, 4), note, fill="black")
    image.save(path)


def contact_sheet(
    pictures: Sequence[NDArray[np.uint8]], columns: int, scale: int = 1
) -> Image.Image:
    """Pictures of one size, [H, W, 3], row after row with a white line between."""
    height, width = (2 + scale * side for side in pictures[0].shape[:2])
    rows = math.ceil(len(pictures) / columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        image = Image.fromarray(picture).resize((width - 2, height - 2), Image.Resampling.NEAREST)
        sheet.paste(image, (index % columns * width + 1, index // columns * height + 1))
    return sheet
