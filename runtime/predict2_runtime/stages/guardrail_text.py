# SPDX-License-Identifier: Apache-2.0
"""The text guardrail stage: blocklists first, then a guard model where the owner named one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from predict2_runtime.guardrails.blocklist import SHIPPED_LISTS, Blocklist
from predict2_runtime.guardrails.text_guard import TextGuard
from predict2_runtime.policy import Policy
from predict2_spec.errors import EngineMismatchError, InvalidRequestError
from predict2_spec.guardrails import SUBJECTS, Subject, Verdict
from predict2_spec.limits import LIMITS, Limits
from predict2_spec.presets import Preset
from predict2_spec.requests import check_text

from . import Arrays
from .warming import TEXT

BLOCKLIST = "blocklist"  # as a verdict names this check
EMPTY = "empty"  # the category of a text with nothing in it


@dataclass(frozen=True)
class GuardrailText:
    """Looks at one text; the first check that refuses it has the last word."""

    blocklist: Blocklist
    guard: TextGuard | None = None
    limits: Limits = LIMITS

    @classmethod
    def open(cls, policy: Policy, preset: Preset) -> "GuardrailText":
        """The stage that the server's owner asked for.

        Raises:
            EngineMismatchError: the owner's lists or guard model can't be read, or the preset has a guard model and
                the owner neither named one nor said to run without.
        """
        if preset.text_guard_path and not (policy.text_guard or policy.run_unguarded):
            raise EngineMismatchError(
                f"preset {preset.name} is guarded by {preset.text_guard_path}, and no text guard was named; start the "
                "server by predict2-serve, with --text-guard, or with --run-unguarded to do without"
            )
        own = [Path(policy.blocklists)] if policy.blocklists else []
        guard = TextGuard.open(policy.text_guard) if policy.text_guard else None
        return cls(Blocklist.read(SHIPPED_LISTS, *own), guard, policy.limits)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`text` and `subject`, strings [1] -> `verdict`, JSON.

        Raises:
            InvalidRequestError: not one text, one too long, or a subject that isn't known.
        """
        text = _one("text", inputs["text"])
        check_text("text", text, self.limits)
        subject = _one("subject", inputs.get("subject", [SUBJECTS[0]]))
        for known in SUBJECTS:
            if subject == known:
                return {"verdict": self.judge(text, known).to_json()}
        raise InvalidRequestError(
            f"subject {subject!r:.40} is unknown; choose one of {', '.join(SUBJECTS)}"
        )

    def warm_up(self, policy: Policy) -> None:
        """Have a guard model in this process judge a text; an endpoint is warmed by whoever runs it."""
        if self.guard and policy.text_guard and not policy.text_guard.url:
            self.guard(TEXT)

    def judge(self, text: str, subject: Subject) -> Verdict:
        """The verdict about a text."""
        if not text.strip():
            return Verdict(False, subject, BLOCKLIST, EMPTY)
        found = self.blocklist.find(text)
        if found:
            return Verdict(False, subject, BLOCKLIST, *found)
        if self.guard is None:
            return Verdict(True, subject, BLOCKLIST)
        safe, category = self.guard(text)
        return Verdict(safe, subject, self.guard.kind.name, category)


def _one(name: str, texts: list[str]) -> str:
    if len(texts) != 1:
        raise InvalidRequestError(f"{name} holds {len(texts)} values; give one")
    return texts[0]
