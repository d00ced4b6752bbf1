# SPDX-License-Identifier: Apache-2.0
"""The words that an English word may be a plural or another form of, by its ending and without a dictionary."""

import re

_VOWELS = "aeiou@*0134"  # with the characters that are written for them
_IRREGULAR = {"children": "child", "teeth": "tooth", "feet": "foot", "mice": "mouse"}
_HISSING = re.compile(r"(?:[sxzo]|ch|sh)es$")
# bomb+ed but rap(e)+ed: where the ending follows, a short syllable would have doubled its last letter.
_SHORT_SYLLABLE = re.compile(rf"[^{_VOWELS}]*[{_VOWELS}][^{_VOWELS}wxy]")


def base_forms(word: str) -> tuple[str, ...]:
    """The word and all it may come from; some of these aren't words."""
    forms = [word, *_singulars(word), *_infinitives(word)]
    return tuple(dict.fromkeys(form for form in forms if form == word or len(form) > 2))


def _singulars(word: str) -> list[str]:
    if word in _IRREGULAR:
        return [_IRREGULAR[word]]
    if word.endswith("men"):
        return [word[:-2] + "an"]
    if not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return []
    found = [word[:-1]]
    if word.endswith("ies"):
        found.append(word[:-3] + "y")
    elif word.endswith("ves"):
        found += [word[:-3] + "f", word[:-3] + "fe"]
    elif _HISSING.search(word):
        found.append(word[:-2])
    return found


def _infinitives(word: str) -> list[str]:
    stem = word.removesuffix("ing") if word.endswith("ing") else word.removesuffix("ed")
    if stem == word or len(stem) < 3 or not any(c in _VOWELS for c in stem):
        return []
    if word.endswith("ied"):
        return [stem[:-1] + "y"]
    if stem[-1] == stem[-2]:
        return [stem, stem[:-1]]
    if _SHORT_SYLLABLE.fullmatch(stem):
        return [stem + "e"]
    return [stem, stem + "e"]
