# SPDX-License-Identifier: Apache-2.0
"""What comes back besides the media: progress events and the metadata of a result."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Event:
    """One line of progress, sent after the step it names is done."""

    stage: str
    step: int  # 1 .. of
    of: int
    seconds: float  # since the request began
    # Until the solver's last step, at the pace of those before; decoding and checks follow. None: not known.
    eta_s: float | None = None

    def to_json(self) -> str:
        """The event as it goes over the wire."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Event":
        """Read an event; fields this version doesn't know are ignored."""
        return cls(**_known(cls, text))


@dataclass(frozen=True)
class Failure:
    """Why a stream ended without a result."""

    status: str  # name of the gRPC status a unary call would have had
    message: str
    verdict: dict[str, Any] | None = None  # of the guardrail that refused, as guardrails.Verdict

    def to_json(self) -> str:
        """The failure as it goes over the wire."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Failure":
        """Read a failure; fields this version doesn't know are ignored."""
        return cls(**_known(cls, text))


@dataclass(frozen=True)
class Metadata:
    """How a result came about; with these values the same server makes the same bytes."""

    task: str
    prompt: str
    negative_prompt: str
    seed: int
    guidance: float
    num_steps: int
    solver: str
    width: int  # pixels
    height: int
    num_frames: int
    fps: int  # 0 for a picture
    media_type: str  # image/jpeg, image/png, video/mp4
    preset: str
    level: str  # exact, fp8, fast, sparse
    precision: str  # of the denoiser engine
    version: str  # of this software
    image_guidance: float | None = None  # of text2world's picture
    num_conditional_frames: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> time spent in it
    guardrail: str = ""  # on, or off by the request's wish
    verdicts: list[dict[str, Any]] = field(
        default_factory=list
    )  # guardrails.Verdict, in their order
    refiner: str = ""  # refined, off, or failed: why; the prompt is then the caller's own
    refined_prompt: str = ""  # what the clip was made from, if not from `prompt`
    score: float | None = None  # of best_of_n's clip, 0..1; None where nobody judged it

    def to_json(self) -> str:
        """The metadata as it goes over the wire and into the file beside the result."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Metadata":
        """Read metadata; fields this version doesn't know are ignored."""
        return cls(**_known(cls, text))


def _known(cls: type, text: str) -> dict[str, Any]:
    return {k: v for k, v in json.loads(text).items() if k in cls.__dataclass_fields__}  # type: ignore[attr-defined]
