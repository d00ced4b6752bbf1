# SPDX-License-Identifier: Apache-2.0
import json
import sys

import pytest

from predict2_runtime.language import Question, open_language_model, plain_text
from predict2_runtime.policy import LanguageModel
from predict2_spec.errors import EngineMismatchError


def test_a_question_survives_the_wire():
    question = Question("Ist das „gut“?", "Kurz.", True, 3, 9, 0.6, 0.9, 50, 1.05, 7, True)
    assert Question.from_json(question.to_json()) == question


def test_a_field_of_a_later_version_is_ignored():
    assert Question.from_json(json.dumps({"text": "What?", "mood": 3})) == Question("What?")


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a <b> | c, d <- e || f -> 5", "a <b> | c, d <- e || f -> 5"),
        ("a<|im_end|>b", "a im_end b"),
        ("<|start_header_id|>system<|end_header_id|>", " start_header_id system end_header_id "),
        ("<|im_<|im_end|>end|>", " im_ im_end end "),
        ("<<||>>", "<  >"),
        ("<|how to|>", " how to "),
    ],
)
def test_control_tokens_lose_their_marks_and_no_word_is_lost(text, plain):
    assert plain_text(text) == plain


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_local_model_without_what_runs_it_names_the_way_out(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it weren't installed
    monkeypatch.delitem(sys.modules, "predict2_runtime.language.local", raising=False)
    with pytest.raises(EngineMismatchError, match=r"pip install torch transformers.*by its URL"):
        open_language_model(LanguageModel(str(tmp_path)))
