# SPDX-License-Identifier: Apache-2.0
"""Two kinds of plots as SVG text: curves over the number of requests at once, and bars made of parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0969da", "#bf8700", "#8c959f", "#1a7f37", "#8250df", "#cf222e", "#1b7c83", "#6639ba")
_INK, _PAPER, _GRID = "#24292f", "#ffffff", "#d0d7de"
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 460, 260, 64, 34, 34  # pixels
_LEGEND = 150
_LABELS, _ROW, _VALUES = 330, 22, 80


@dataclass(frozen=True)
class Bar:
    """One row: parts that add up, none below 0."""

    label: str
    parts: tuple[float, ...]


def curves(title: str, unit: str, series: Mapping[str, Mapping[int, float]]) -> str:
    """A line a series; across, how many requests run at once, and up, the value from 0."""
    points = [(x, y) for line in series.values() for x, y in line.items()]
    places = sorted({x for x, _ in points})
    highest = max((y for _, y in points), default=0.0) or 1.0
    inner = _WIDTH - _LEFT - _LEGEND, _HEIGHT - _TOP - _BOTTOM

    def at(x: int, y: float) -> tuple[float, float]:
        share = places.index(x) / max(len(places) - 1, 1)
        return _LEFT + share * inner[0], _TOP + (1 - y / highest) * inner[1]

    parts = _opened(title, _WIDTH, _HEIGHT)
    for share in (0.0, 0.5, 1.0):
        _, y = at(places[0], share * highest)
        parts.append(
            f'<path d="M{_LEFT} {y:.1f}H{_LEFT + inner[0]}" stroke="{_GRID}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.3g} {escape(unit)}</text>'
        )
    for x in places:
        left, _ = at(x, 0)
        parts.append(f'<text x="{left:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{x}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        spots = [at(x, y) for x, y in sorted(line.items())]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots]
        parts.append(_key(name, colour, _WIDTH - _LEGEND + 14, _TOP + 18 * index))
    return "\n".join([*parts, "</svg>\n"])


def stacked(title: str, unit: str, names: Sequence[str], rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0; each row's parts in the colours of their names, their sum behind them."""
    width = _LABELS + 2 * _WIDTH - _LEGEND
    longest = max((sum(row.parts) for row in rows), default=0.0) or 1.0
    scale = (width - _LABELS - _VALUES) / longest
    parts = _opened(title, width, _TOP + 24 + _ROW * len(rows))
    for index, name in enumerate(names):
        parts.append(_key(name, COLOURS[index % len(COLOURS)], _LABELS + 160 * index, _TOP))
    for index, row in enumerate(rows):
        top, left = _TOP + 18 + _ROW * index, float(_LABELS)
        parts.append(
            f'<text x="{_LABELS - 8}" y="{top + 14}" text-anchor="end">{escape(row.label)}</text>'
        )
        for part, value in enumerate(row.parts):
            colour = COLOURS[part % len(COLOURS)]
            parts.append(
                f'<rect x="{left:.1f}" y="{top + 2}" width="{value * scale:.1f}" height="{_ROW - 6}" fill="{colour}"/>'
            )
            left += value * scale
        total = f"{sum(row.parts):.3g} {escape(unit)}"
        parts.append(f'<text x="{left + 6:.1f}" y="{top + 14}">{total}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _opened(title: str, width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>',
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>',
    ]


def _key(name: str, colour: str, left: float, top: float) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="10" height="10" fill="{colour}"/>'
        f'<text x="{left + 15}" y="{top + 10}">{escape(name)}</text>'
    )
