# SPDX-License-Identifier: Apache-2.0
"""Guardrails and the prompt refiner, as one request sees them."""

import logging
from dataclasses import dataclass, field
from typing import Any

from predict2_runtime.frames import Frames
from predict2_runtime.progress import Progress
from predict2_spec import tensors
from predict2_spec.errors import (
    InvalidRequestError,
    Predict2Error,
    RequestCancelledError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import UNDECIDED, Subject, Verdict, refusal
from predict2_spec.requests import Request

from .generation import Backend

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moderator:
    """All guardrails, or none where the request asked for that and may; keeps their verdicts."""

    backend: Backend
    progress: Progress
    enabled: bool
    verdicts: list[Verdict] = field(default_factory=list)

    def check_text(self, text: str, subject: Subject) -> None:
        """Let a text pass.

        Raises:
            BlockedError: a guardrail refuses it, or couldn't decide.
        """
        if self.enabled:
            self._ask(tensors.GUARDRAIL_TEXT, subject, text=text)
            self.progress.done(f"check_{subject}")

    def check_frames(self, frames: Frames, subject: Subject) -> Frames:
        """Let frames pass, faces in them made unrecognisable; UINT8 [F, H, W, 3].

        Raises:
            BlockedError: a guardrail refuses them, or couldn't decide.
        """
        policy = self.backend.policy
        if not (self.enabled and policy.guard_frames):
            return frames
        checked: Frames = self._ask(tensors.GUARDRAIL_VIDEO, subject, frames=frames)["frames"]
        self.progress.done(f"check_{subject}")
        return checked

    def _ask(self, model: tensors.Model, subject: Subject, **inputs: Any) -> dict[str, Any]:
        """The stage's answer, which is safe; a stage that fails has decided nothing."""
        try:
            answer = self.backend.call(model, subject=subject, **inputs)
            verdict = Verdict.from_json(answer["verdict"][0])
        except RequestCancelledError:
            raise
        except (Predict2Error, ValueError, TypeError, KeyError) as error:
            log.warning("%s couldn't decide: %s", model.name, type(error).__name__)
            answer, verdict = {}, Verdict(False, subject, model.name, UNDECIDED)
        self.verdicts.append(verdict)
        if not verdict.safe:
            log.critical("GUARDRAIL BLOCKED a %s: %s, %s", subject, verdict.check, verdict.category)
            self.backend.count_blocked(verdict)
            raise refusal(verdict)
        return answer


def open_moderator(backend: Backend, request: Request, progress: Progress) -> Moderator:
    """The guardrails for a request.

    Raises:
        InvalidRequestError: it wants none, and the server's owner doesn't allow that.
    """
    if request.disable_guardrail and not backend.policy.allow_disable_guardrail:
        raise InvalidRequestError(
            "disable_guardrail was asked for, and this server doesn't allow it; leave it out, or "
            "have its owner start it with predict2-serve --allow-disable-guardrail"
        )
    return Moderator(backend, progress, enabled=not request.disable_guardrail)


@dataclass(frozen=True)
class Refinement:
    """The prompt a clip is made from, and how it came about."""

    prompt: str
    outcome: str  # refined, off, or failed: why


def refine(moderator: Moderator, prompt: str, *, wanted: bool, **seen: Any) -> Refinement:
    """A fuller prompt, written by who has seen the input; the caller's own where that fails.

    Args:
        moderator: looks at what the refiner wrote.
        prompt: the caller's.
        wanted: the request didn't switch the refiner off.
        seen: `frames`, a picture UINT8 [1, H, W, 3], or `video`, an encoded clip UINT8 [bytes].

    Raises:
        BlockedError: a guardrail refuses the refined prompt.
        ServerUnavailableError: the refiner failed and the server's owner wants no clip without it.
    """
    backend, policy = moderator.backend, moderator.backend.policy
    if not wanted or policy.reasoner is None:
        return Refinement(prompt, "off")
    try:
        answer = backend.call(tensors.PROMPT_REFINER, prompt=prompt, **seen)
        refined: str = answer["refined_prompt"][0]
    except RequestCancelledError:
        raise
    except Predict2Error as error:
        if policy.require_refiner:
            raise ServerUnavailableError(
                f"the prompt refiner failed ({error}), and this server makes no clip without it; "
                "try again, or send the request with disable_prompt_refiner"
            ) from error
        log.warning(
            "the prompt refiner failed (%s); the caller's prompt is taken", type(error).__name__
        )
        moderator.progress.done("refine_prompt")
        return Refinement(prompt, f"failed: {error}")
    moderator.progress.done("refine_prompt")
    moderator.check_text(refined, "refined_prompt")
    return Refinement(refined, "refined")
