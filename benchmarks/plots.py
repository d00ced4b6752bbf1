# SPDX-License-Identifier: Apache-2.0
"""Small plots as SVG text."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _LABELS, _ROW, _TOP = 760, 300, 24, 34  # pixels
_VALUES = 80  # right of the longest bar
_INK, _PAPER = "#24292f", "#ffffff"


@dataclass(frozen=True)
class Bar:
    """One row of a plot."""

    label: str
    value: float  # 0 or more
    colour: str  # as SVG spells it


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0, one a row, each with its label and its value."""
    longest = max((row.value for row in rows), default=0.0) or 1.0
    height = _TOP + _ROW * len(rows) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13" fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>',
        f'<text x="8" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    for index, row in enumerate(rows):
        top = _TOP + _ROW * index
        width = (_WIDTH - _LABELS - _VALUES) * row.value / longest
        parts += [
            f'<text x="{_LABELS - 8}" y="{top + 15}" text-anchor="end">{escape(row.label)}</text>',
            f'<rect class="bar" x="{_LABELS}" y="{top + 2}" width="{width:.1f}" height="{_ROW - 6}" '
            f'fill="{escape(row.colour)}"/>',
            f'<text x="{_LABELS + width + 6:.1f}" y="{top + 15}">{row.value:.3g} {escape(unit)}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])
