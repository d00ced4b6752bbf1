# SPDX-License-Identifier: Apache-2.0
"""Scores of clips from a critic's responses, and the order they put clips in."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_ANSWER = re.compile(r"<answer>\s*(yes|no)\s*</answer>", re.IGNORECASE)
MAX_GENERATIONS = 16
MAX_TRIALS = 16


@dataclass(frozen=True)
class Judged:
    """A clip of several, and what the critic said of it."""

    seed: int
    score: float  # 0..1
    responses: tuple[str, ...]
    error: str = ""  # why there is no clip, or no score


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
