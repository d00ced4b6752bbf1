# SPDX-License-Identifier: Apache-2.0
"""The most that one request may ask for: defaults, which a server's owner may change, and how to say so."""

import re
from dataclasses import dataclass, fields

from .critic import MAX_GENERATIONS
from .errors import InvalidRequestError

# A call of the text encoder takes no more. Plans are built for it, so it is nobody's to change.
MAX_PROMPTS = 16


@dataclass(frozen=True)
class Limits:
    """What a server takes; the one place these numbers stand. All are positive.

    Networks have limits of their own (`Preset.check`), and the lower one holds.
    """

    prompt_bytes: int = 16 * 1024
    num_steps: int = 100
    guidance: float = 50.0
    num_frames: int = 1000  # of a clip to make
    pixels: int = 16 * 1024 * 1024  # width x height of a picture or clip to make
    num_generations: int = MAX_GENERATIONS  # clips of one best_of_n
    media_bytes: int = 64 * 1024 * 1024  # an uploaded picture or clip, encoded
    media_pixels: int = 64 * 1024 * 1024  # one decoded picture or frame
    media_frames: int = 100_000  # frames of an uploaded clip
    media_seconds: float = 3600.0  # how long an uploaded clip plays
    # All of their pixels together. Frames of one colour take next to no bytes and still have to be decoded, at about
    # 1e9 pixels a second and core. Ten minutes of 1920 x 1080 at 30 frames per second are 37e9.
    media_total_pixels: int = 40_000_000_000


LIMITS = Limits()
# gRPC's messages end at 2 GiB, and something else travels with a file.
MAX_FILE_BYTES = 2**31 - 2**20
# Of any one text. A longer one isn't even read: the log's list of its words alone would take many times its size.
MAX_TEXT_BYTES = 2**20
# What no owner can allow.
_MOST: dict[str, float] = {
    "prompt_bytes": MAX_TEXT_BYTES,
    "media_bytes": MAX_FILE_BYTES,
    "num_generations": MAX_GENERATIONS,
}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_VALUE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:([KMG]I?)?B?)", re.IGNORECASE)


def way_out(name: str) -> str:
    """The end of a refusal: who can allow more, and how."""
    return f"or have the server's owner allow it with predict2-serve --limit {name}=..."


def parse_number(text: str) -> float | None:
    """The number in 50, 2.5, 64MB or 64MiB; None where it is none."""
    found = _VALUE.fullmatch(text.strip())
    return float(found[1]) * _UNITS[(found[2] or "").upper()] if found else None


def parse_limit(text: str) -> tuple[str, int | float]:
    """A limit's name and value from NAME=VALUE, such as media_bytes=64MB or num_steps=50.

    K, M and G are powers of 1000; KiB, MiB and GiB of 1024.

    Raises:
        InvalidRequestError: there is no such limit, or the value can't be one.
    """
    name, _, value = text.partition("=")
    kinds = {field.name: field.type for field in fields(Limits)}
    if name not in kinds:
        raise InvalidRequestError(
            f"limit {text!r:.60} must be NAME=VALUE, with a NAME of {', '.join(kinds)}"
        )
    number = parse_number(value) or 0.0
    most = _MOST.get(name, 1e15)
    whole = kinds[name] is int
    if not 0 < number <= most or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        raise InvalidRequestError(
            f"limit {name}: {value!r:.40} must be {kind} above 0 and up to {most:.0f}, such as {getattr(LIMITS, name)}; "
            "64MB and 64MiB are understood too"
        )
    return name, int(number) if whole else number
