# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime.guardrails.inflection import base_forms


@pytest.mark.parametrize(
    ("word", "base"),
    [
        ("bombs", "bomb"),
        ("glasses", "glass"),
        ("knives", "knife"),
        ("thieves", "thief"),
        ("bodies", "body"),
        ("lies", "lie"),
        ("women", "woman"),
        ("children", "child"),
        ("torches", "torch"),
        ("bombed", "bomb"),
        ("murdered", "murder"),
        ("raping", "rape"),
        ("stabbing", "stab"),
        ("killing", "kill"),
        ("bullied", "bully"),
        ("making", "make"),
        ("b0mbs", "b0mb"),
    ],
)
def test_a_form_leads_to_its_base(word, base):
    assert base in base_forms(word)
    assert base_forms(word)[0] == word


@pytest.mark.parametrize(
    ("word", "other"),
    [("rapping", "rape"), ("striped", "strip"), ("hoping", "hop"), ("bus", "bu"), ("king", "k")],
)
def test_a_word_doesnt_lead_to_another_one(word, other):
    assert other not in base_forms(word)


@pytest.mark.parametrize("word", ["", "s", "ss", "ing", "ed", "sing", "red", "glass", "analysis"])
def test_words_without_an_ending_stay_alone(word):
    assert base_forms(word) == (word,)
