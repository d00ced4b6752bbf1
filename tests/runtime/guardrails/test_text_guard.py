# SPDX-License-Identifier: Apache-2.0
import json
import logging

import pytest

from predict2_runtime.guardrails.text_guard import (
    KINDS,
    TextGuard,
    kind_of,
    read_llama_guard,
    read_qwen3guard,
)
from predict2_runtime.policy import LanguageModel
from predict2_spec.errors import EngineMismatchError, ServerError, ServerUnavailableError
from predict2_spec.guardrails import UNDECIDED

LLAMA, QWEN = KINDS


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("safe", (True, "")),
        ("\n\nsafe\n", (True, "")),
        ("unsafe\nS1", (False, "Violent Crimes")),
        ("\n\nunsafe\nS1,S9", (False, "Violent Crimes, Indiscriminate Weapons")),
        ("unsafe\nS10, S14", (False, "Hate, Code Interpreter Abuse")),
        ("UNSAFE\nS4", (False, "Child Sexual Exploitation")),
        ("unsafe\nS9, S1,S9", (False, "Violent Crimes, Indiscriminate Weapons")),
        ("unsafe\nS77,S123456", (False, "unsafe")),
        ("unsafe\nS1,S77", (False, "Violent Crimes")),
        ("unsafe", (False, "unsafe")),
        ("safe\nunsafe", (False, "unsafe")),
        ("", None),
        ("I can't help with that.", None),
        ("This prompt is safe to use", None),
        ("safe\nS1", None),
    ],
)
def test_answers_of_llama_guard(answer, read):
    assert read_llama_guard(answer) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Safety: Safe\nCategories: None", (True, "")),
        ("Safety: Controversial\nCategories: Politically Sensitive Topics", (True, "")),
        ("Safety: Unsafe\nCategories: Violent", (False, "Violent")),
        (
            "<think>\n\n</think>\n\nSafety: Unsafe\nCategories: Violent, PII",
            (False, "Violent, PII"),
        ),
        ("Safety: Unsafe\nCategories: PII, Violent, PII", (False, "Violent, PII")),
        (
            "Safety: Unsafe\nCategories: Non-violent Illegal Acts",
            (False, "Non-violent Illegal Acts"),
        ),
        (
            "Safety: Unsafe\nCategories: Sexual Content or Sexual Acts, Suicide & Self-Harm",
            (False, "Sexual Content or Sexual Acts, Suicide & Self-Harm"),
        ),
        ("Safety: Unsafe\nCategories: None", (False, "unsafe")),
        ("Safety: Unsafe\nCategories: what the prompt wants", (False, "unsafe")),
        ("Safety: Unsafe\nCategories: gore 7, Jailbreak", (False, "Jailbreak")),
        ("Safety: Unsafe", (False, "unsafe")),
        ("Safety: Unsafe\nCategories: \n", (False, "unsafe")),
        ("Safety: Safe\nSafety: Unsafe\nCategories: Jailbreak", (False, "Jailbreak")),
        ("", None),
        ("Safety:", None),
        ("Safety: Safely", None),
        ("safe", None),
        ("Categories: Violent", None),
    ],
)
def test_answers_of_qwen3guard(answer, read):
    assert read_qwen3guard(answer) == read


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("meta-llama/Llama-Guard-3-8B", LLAMA),
        ("llama-guard3:8b", LLAMA),
        ("/models/LlamaGuard_3", LLAMA),
        ("models--meta-llama--Llama-Guard-3-8B/snapshots/0f1e", LLAMA),
        ("Qwen/Qwen3Guard-Gen-0.6B", QWEN),
        ("/beside-llama-guard/qwen3guard-gen-4b", QWEN),
    ],
)
def test_a_guard_is_known_by_its_name(model, kind):
    assert kind_of(LanguageModel(model)) is kind
    assert kind_of(LanguageModel(model, url="http://127.0.0.1:9/v1")) is kind


@pytest.mark.parametrize(("model_type", "kind"), [("llama", LLAMA), ("qwen3", QWEN)])
def test_a_folder_of_any_name_is_known_by_its_config(tmp_path, model_type, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    assert kind_of(LanguageModel(str(tmp_path))) is kind
    with pytest.raises(EngineMismatchError):
        kind_of(LanguageModel(str(tmp_path), url="http://127.0.0.1:9/v1"))


@pytest.mark.parametrize("config", [None, "", "[]", "{}", '{"model_type": "t5"}', b"\xff"])
def test_an_unknown_guard_is_refused_with_the_known_ones(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_bytes(
            config if isinstance(config, bytes) else config.encode()
        )
    with pytest.raises(
        EngineMismatchError, match=r"none of llama-guard, qwen3guard.*llama or qwen3"
    ):
        TextGuard.open(LanguageModel(str(tmp_path)))


@pytest.mark.parametrize(("kind", "tokens"), [(LLAMA, 100), (QWEN, 128)])
def test_the_guard_is_asked_once_about_the_text_alone(kind, tokens):
    asked = []

    def ask(question, frames, fps):
        asked.append((question, frames, fps))
        return ["safe" if kind is LLAMA else "Safety: Safe"]

    assert TextGuard(kind, ask)("a cup") == (True, "")
    ((question, frames, fps),) = asked
    assert (question.text, question.system, question.max_new_tokens) == ("a cup", "", tokens)
    assert (question.num_responses, question.temperature, frames, fps) == (1, 0.0, None, 0.0)


@pytest.mark.parametrize(
    "error",
    [
        ServerUnavailableError("the model can't be reached"),
        ServerError("answered with status 400 ('no: \"my secret prompt\" is too long'); see there"),
        ServerError('answered with status 400 ("it\'s my secret prompt")'),
        ValueError("my secret prompt is odd"),
    ],
)
def test_a_guard_that_fails_refuses_and_logs_why_without_the_text(caplog, error):
    def ask(question, frames, fps):
        raise error

    assert TextGuard(QWEN, ask)("my secret prompt") == (False, UNDECIDED)
    assert f"qwen3guard failed, so a text is refused: {type(error).__name__}" in caplog.text
    assert "in ask" in caplog.text
    assert "secret" not in caplog.text


def test_the_log_keeps_the_reason_of_our_own_errors(caplog):
    def ask(question, frames, fps):
        raise ServerUnavailableError("http://gpu2 didn't answer (timed out); the server's owner")

    TextGuard(LLAMA, ask)("a cup")
    assert "http://gpu2 didn't answer (timed out); the server's owner" in caplog.text


@pytest.mark.parametrize("answers", [[], ["safe", "safe"], [None], ["my secret prompt, you say?"]])
def test_a_guard_that_gives_no_verdict_refuses(caplog, answers):
    with caplog.at_level(logging.WARNING):
        verdict = TextGuard(LLAMA, lambda *_: answers)("my secret prompt")
    assert verdict == (False, UNDECIDED)
    assert "a text is refused" in caplog.text
    assert "secret" not in caplog.text
