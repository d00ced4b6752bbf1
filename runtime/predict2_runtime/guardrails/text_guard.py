# SPDX-License-Identifier: Apache-2.0
"""Language models that were trained to tell harmful texts from harmless ones."""

import json
import logging
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from predict2_runtime.language import Ask, Question, open_language_model
from predict2_runtime.policy import LanguageModel
from predict2_spec.errors import EngineMismatchError, Predict2Error
from predict2_spec.guardrails import UNDECIDED

log = logging.getLogger(__name__)

Answer = tuple[bool, str]  # safe, and the categories of what isn't

_LLAMA_CATEGORIES = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex-Related Crimes",
    "S4": "Child Sexual Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Suicide & Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
_QWEN_CATEGORIES = (
    "Violent",
    "Non-violent Illegal Acts",
    "Sexual Content or Sexual Acts",
    "PII",
    "Suicide & Self-Harm",
    "Unethical Acts",
    "Politically Sensitive Topics",
    "Copyright Violation",
    "Jailbreak",
)
# The category where a guard names none of these; its own words would make labels of metrics without end.
_UNNAMED = "unsafe"
_QWEN_LABEL = re.compile(r"Safety: (Safe|Unsafe|Controversial)\b")
_QWEN_NAMED = re.compile(r"Categories:(.*)")
_QUOTED = re.compile(r" *\((['\"]).*\1\)", re.DOTALL)


def read_llama_guard(answer: str) -> Answer | None:
    """What an answer such as "unsafe, new line, S1,S9" says; None where it can't be read."""
    if "unsafe" in answer.lower():
        codes = set(re.findall(r"\bS\d+\b", answer))
        named = [name for code, name in _LLAMA_CATEGORIES.items() if code in codes]
        return False, ", ".join(named) or _UNNAMED
    return (True, "") if answer.strip().lower() == "safe" else None


def read_qwen3guard(answer: str) -> Answer | None:
    """What an answer such as "Safety: Unsafe, new line, Categories: Violent" says; None where it can't be read.

    Only Unsafe is refused; Controversial passes, as in the published use of the model.
    """
    labels = _QWEN_LABEL.findall(answer)
    if "Unsafe" in labels:
        said = _QWEN_NAMED.search(answer)
        named = [name for name in _QWEN_CATEGORIES if said and name in said[1]]
        return False, ", ".join(named) or _UNNAMED
    return (True, "") if labels else None


@dataclass(frozen=True)
class Kind:
    """A family of guards: how to know one, and how to read what it says."""

    name: str
    model_type: str  # of a checkpoint's config.json
    max_new_tokens: int
    read: Callable[[str], Answer | None]


KINDS = (
    Kind("llama-guard", "llama", 100, read_llama_guard),
    Kind("qwen3guard", "qwen3", 128, read_qwen3guard),
)


@dataclass(frozen=True)
class TextGuard:
    """A guard that can be asked. It refuses what it can't decide."""

    kind: Kind
    ask: Ask

    @classmethod
    def open(cls, where: LanguageModel) -> "TextGuard":
        """The guard that answers at `where`.

        Raises:
            EngineMismatchError: it isn't of a known family, or can't be opened.
        """
        return cls(kind_of(where), open_language_model(where))

    def __call__(self, text: str) -> Answer:
        """(safe, category) of a text. A failure goes to the log, the text doesn't."""
        question = Question(text, max_new_tokens=self.kind.max_new_tokens)
        try:
            (answer,) = self.ask(question, None, 0.0)
            read = self.kind.read(answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, a text that wasn't looked at isn't safe
            log.error("%s failed, so a text is refused: %s", self.kind.name, _reason(error))
            return False, UNDECIDED
        if read is None:
            log.warning(
                "%s gave an answer of %d characters that is no verdict, so a text is refused",
                self.kind.name,
                len(answer),
            )
            return False, UNDECIDED
        return read


def _reason(error: Exception) -> str:
    """A failure without the text: an endpoint's answer, quoted in brackets, or a library's words may repeat it."""
    said = _QUOTED.sub("", str(error)) if isinstance(error, Predict2Error) else ""
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}: {said}\n{frames}"


def kind_of(where: LanguageModel) -> Kind:
    """The family of a guard, by its name or else by its checkpoint's type.

    Raises:
        EngineMismatchError: neither is known.
    """
    for name in (Path(where.model).name, where.model):  # a cache's folder has the name further up
        plain = re.sub(r"[-_]", "", name.lower())
        for kind in KINDS:
            if kind.name.replace("-", "") in plain:
                return kind
    model_type = "" if where.url else _model_type(Path(where.model))
    for kind in KINDS:
        if kind.model_type == model_type:
            return kind
    raise EngineMismatchError(
        f"text guard {where.model} is none of {', '.join(k.name for k in KINDS)}: neither its name says so nor a "
        f"config.json with model_type {' or '.join(k.model_type for k in KINDS)}; name a model of these families"
    )


def _model_type(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
