# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime.guardrails.folding import fold, letters_apart, split_words, views


def test_a_plain_text_has_one_view():
    assert views("A robot arm\nlifts a cup.") == ["a robot arm\nlifts a cup."]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("\u00e9t\u00e9", "ete"),
        ("M\u00fcLLER", "muller"),
        ("\u0391\u0392 \u0430\u0441\u0435", "ab ace"),
        ("\U0001d4ea\uff42\u24d2", "abc"),
        ("a\u200bb\u00adc\u202ed", "abcd"),
        ("a\x07\x7fb", "ab"),
        ("a\u00a0b\tc\n", "a\u00a0b\tc\n".replace("\u00a0", " ")),
        ("\u0131\u0142\u026a", "ili"),
        ("\ufb01ne", "fine"),
    ],
)
def test_folding_leaves_what_a_reader_sees(text, seen):
    assert fold(text).replace("\u00a0", " ") == seen


def test_letters_set_apart_are_read_without_what_stands_between():
    text = "see t-h-e b o  m . b, and a.b or \u0441 \u0430 t"
    assert letters_apart(text) == ["thebomb", "cat"]
    assert letters_apart("A robot arm") == []


def test_letters_that_look_like_none_of_ours_stay_in_their_word():
    assert fold("\u6a5f\u5668") == "\u6a5f\u5668"
    assert split_words(fold("\u0434\u043e\u043c")) == ("\u0434om",)


def test_every_character_of_the_first_planes_can_be_folded():
    everything = "".join(chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000)
    assert "\u200b" not in fold(everything)


def test_words_keep_the_signs_that_stand_for_letters():
    assert split_words("a$$ *b* c@d, e_f g's h-i 'j'") == (
        *("a$$", "*b*", "c@d", "e", "f", "g", "h", "i", "j"),
    )
