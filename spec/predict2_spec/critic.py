# SPDX-License-Identifier: Apache-2.0
"""A critic's responses: what they say, the scores they give clips, and the order they put clips in."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_ANSWER = re.compile(r"<answer>\s*(yes|no)\s*</answer>", re.IGNORECASE)
MAX_GENERATIONS = 16
MAX_TRIALS = 16
NUM_TRIALS = 5  # as the original
# Responses are hostile: a prompt may have told the critic what to write.
_MAX_CHARS = 64 * 1024
_MAX_COMPONENTS = 64
_TAG = r"</?(?:think|overview|component|analysis|anomaly|answer)\b"
_COMPONENT = re.compile(r"<component\b", re.IGNORECASE)
_NAME = re.compile(r"""\s+name\s*=\s*["']?([^"'<>]*)""", re.IGNORECASE)


@dataclass(frozen=True)
class Judged:
    """A clip of several, and what the critic said of it."""

    seed: int
    score: float  # 0..1
    responses: tuple[str, ...]
    error: str = ""  # why there is no clip, or no score


@dataclass(frozen=True)
class Component:
    """A part of a clip, as one response sees it."""

    name: str
    analysis: str
    anomaly: bool


@dataclass(frozen=True)
class Reading:
    """A response taken apart; what it lacks is empty."""

    overview: str
    components: tuple[Component, ...]
    anomaly: bool | None  # as has_anomaly


def parse(response: str) -> Reading:
    """Take a response apart as far as it keeps to the form asked for; whatever it holds, this never fails."""
    head, *parts = _COMPONENT.split(response[:_MAX_CHARS], maxsplit=_MAX_COMPONENTS)
    return Reading(_inside("overview", head), tuple(map(_component, parts)), has_anomaly(response))


def _component(part: str) -> Component:
    name = _NAME.match(part)
    anomaly = _inside("anomaly", part).lower().startswith("yes")
    return Component(name[1].strip() if name else "", _inside("analysis", part), anomaly)


def _inside(tag: str, text: str) -> str:
    """What stands in the first `tag`, up to the next tag of the form."""
    found = re.search(rf"<{tag}\s*>(.*?)(?:{_TAG}|\Z)", text, re.IGNORECASE | re.DOTALL)
    return found[1].strip() if found else ""


def has_anomaly(response: str) -> bool | None:
    """What a response answers to whether the clip has anomalies; None: nothing that can be read."""
    found = _ANSWER.search(response)
    return found and found[1].lower() == "yes" if found else None


def score(responses: Iterable[str]) -> float:
    """The share of the readable responses that find no anomaly, 0..1; 0 when none is readable."""
    answers = [answer for answer in map(has_anomaly, responses) if answer is not None]
    return answers.count(False) / len(answers) if answers else 0.0


def ranked(clips: Iterable[Judged]) -> tuple[Judged, ...]:
    """Best score first, failures last; equal scores in the order of their seeds."""
    return tuple(sorted(clips, key=lambda clip: (bool(clip.error), -clip.score, clip.seed)))


def to_json(clips: Sequence[Judged]) -> str:
    """A ranking as it goes over the wire."""
    return json.dumps([asdict(clip) for clip in clips], ensure_ascii=False)


def from_json(text: str) -> tuple[Judged, ...]:
    """Read a ranking."""
    rows: list[dict[str, Any]] = json.loads(text)
    return tuple(Judged(**{**row, "responses": tuple(row["responses"])}) for row in rows)
