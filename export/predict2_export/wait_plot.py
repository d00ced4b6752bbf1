# SPDX-License-Identifier: Apache-2.0
"""The wait against the number of GPUs, as SVG text."""

from collections.abc import Sequence
from html import escape

from .traffic import Measure, Service

_WIDTH, _HEIGHT = 640, 360  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_LINES: tuple[tuple[Measure, str], ...] = (("p95", "#0969da"), ("mean", "#1a7f37"))


def plot(title: str, services: Sequence[Service], target_s: float, chosen: int) -> str:
    """A line for each measure, the target as a dashed one, and a ring around what was chosen.

    Args:
        title: what it is of.
        services: one or more, by rising number of GPUs.
        target_s: seconds.
        chosen: a number of GPUs.
    """
    highest = max(target_s, *(s.wait_s(measure) for s in services for measure, _ in _LINES)) or 1.0
    first, last = services[0].gpus, services[-1].gpus

    def x(gpus: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (gpus - first) / max(1, last - first)

    def y(seconds: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * seconds / highest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12" fill="#24292f">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-weight="bold">{escape(title)}</text>',
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(target_s):.1f}" y2="{y(target_s):.1f}" '
        'stroke="#cf222e" stroke-dasharray="6 4"/>',
    ]
    for measure, colour in _LINES:
        points = [(x(s.gpus), y(s.wait_s(measure)), s) for s in services]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{6 if s.gpus == chosen else 3}" fill="{colour}"/>'
            for a, b, s in points
        ]
        a, b, _ = points[0]
        parts.append(f'<text x="{a + 8:.1f}" y="{b - 6:.1f}" fill="{colour}">{measure}</text>')
    for s in services:
        parts.append(f'<text x="{x(s.gpus):.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{s.gpus}</text>')  # fmt: skip
    for share in (0.0, 0.5, 1.0):
        parts.append(f'<text x="{_LEFT - 8}" y="{y(share * highest) + 4:.1f}" text-anchor="end">{share * highest:.3g} s</text>')  # fmt: skip
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}" text-anchor="middle">GPUs</text>')
    return "\n".join([*parts, "</svg>\n"])
