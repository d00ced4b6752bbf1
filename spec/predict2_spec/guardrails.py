# SPDX-License-Identifier: Apache-2.0
"""What a guardrail says of a text or of frames, and the words in which a caller hears that it refused."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import BlockedError

Subject = Literal["prompt", "refined_prompt", "picture", "clip"]
SUBJECTS: tuple[Subject, ...] = ("prompt", "refined_prompt", "picture", "clip")
UNDECIDED = "undecided"  # the category of what a guardrail refuses because it couldn't decide

# Every refusal begins with it: Triton has no status for them, so they share INVALID_ARGUMENT with mistakes.
BLOCKED_PREFIX = "blocked: "

_WORDS: dict[Subject, tuple[str, str]] = {  # what it is, what a caller can do
    "prompt": ("the prompt", "rephrase it"),
    "refined_prompt": (
        "the prompt as the refiner wrote it",
        "rephrase yours, or send it with disable_prompt_refiner",
    ),
    "picture": ("the picture that was made", "change the prompt or the seed"),
    "clip": ("the clip that was made", "change the prompt, the input or the seed"),
}


@dataclass(frozen=True)
class Verdict:
    """One guardrail's answer about one subject."""

    safe: bool
    subject: Subject
    check: str  # what decided: blocklist, llama-guard, qwen3guard, content, faces; the last one asked when safe
    category: str = (
        ""  # why it isn't safe, such as Violence; of the blocklist: the name of the list
    )
    entry: str = ""  # the blocklist's entry that was found, or the frames, such as "3-7"
    faces: int = 0  # faces that were made unrecognisable, over all frames

    def to_json(self) -> str:
        """The verdict as it goes over the wire."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Verdict":
        """Read a verdict; fields this version doesn't know are ignored."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{k: v for k, v in values.items() if k in cls.__dataclass_fields__})


def refusal(verdict: Verdict) -> BlockedError:
    """The error that tells a caller of a verdict that isn't safe."""
    what, way_out = _WORDS[verdict.subject]
    if verdict.category == UNDECIDED:
        return BlockedError(
            f"{BLOCKED_PREFIX}guardrail {verdict.check} couldn't decide about {what}, so it is refused; "
            "try again later, or ask the server's owner to look into its log",
            verdict,
        )
    entry = f" ({verdict.entry})" if verdict.entry else ""
    return BlockedError(
        f"{BLOCKED_PREFIX}guardrail {verdict.check} refuses {what}: {verdict.category}{entry}; {way_out}",
        verdict,
    )
