# SPDX-License-Identifier: Apache-2.0
"""The ways a text can be read: with look-alikes as plain letters, with letters set apart put together."""

import re
import unicodedata
from functools import lru_cache

SYMBOLS = "@$*"  # these stand for letters inside words; all others end a word

# What letters of other scripts look like, by the last words of their Unicode names.
# fmt: off
_LOOK_ALIKES = {
    "CYRILLIC SMALL LETTER": {
        "A": "a", "VE": "b", "SOFT SIGN": "b", "BE": "b", "ES": "c", "KOMI DE": "d", "IE": "e",
        "EN": "h", "SHHA": "h", "BYELORUSSIAN-UKRAINIAN I": "i", "JE": "j", "KA": "k",
        "PALOCHKA": "l", "EM": "m", "PE": "n", "O": "o", "ER": "p", "QA": "q", "GHE": "r",
        "DZE": "s", "TE": "t", "IZHITSA": "v", "STRAIGHT U": "y", "WE": "w", "HA": "x", "U": "y",
        "UKRAINIAN IE": "e", "REVERSED ZE": "e", "ZE": "e", "YA": "r", "OMEGA": "w",
    },
    "GREEK SMALL LETTER": {
        "ALPHA": "a", "BETA": "b", "EPSILON": "e", "ETA": "n", "IOTA": "i", "KAPPA": "k",
        "MU": "m", "NU": "v", "OMICRON": "o", "RHO": "p", "FINAL SIGMA": "s", "TAU": "t",
        "UPSILON": "u", "CHI": "x", "GAMMA": "y", "OMEGA": "w", "ZETA": "z", "DELTA": "d",
    },
    "GREEK CAPITAL LETTER": {
        "ALPHA": "a", "BETA": "b", "EPSILON": "e", "ETA": "h", "IOTA": "i", "KAPPA": "k",
        "MU": "m", "NU": "n", "OMICRON": "o", "RHO": "p", "TAU": "t", "UPSILON": "y",
        "CHI": "x", "ZETA": "z",
    },
    "LATIN SMALL LETTER": {"ALPHA": "a", "IOTA": "i"},
    "ARMENIAN SMALL LETTER": {"OH": "o", "SEH": "u", "VO": "n", "HO": "h", "CO": "g", "ZA": "q"},
    "CHEROKEE LETTER": {
        "GO": "a", "YV": "b", "TLI": "c", "A": "d", "GV": "e", "SI": "g", "MI": "h",
        "V": "i", "GU": "j", "TSO": "k", "TLE": "l", "LU": "m", "TLV": "p", "E": "r",
        "DU": "s", "I": "t", "DO": "v", "LA": "w", "NO": "z",
    },
}
# fmt: on
_LOOKS = {
    unicodedata.lookup(f"{script} {name}"): letter
    for script, letters in _LOOK_ALIKES.items()
    for name, letter in letters.items()
} | {"\u2019": "'", "\u2010": "-"}
# Small capitals, letters with strokes and hooks, letters in boxes: their names end in what they look like.
_LATIN_NAME = re.compile(
    r"(?:.* )?(?:LATIN|REGIONAL INDICATOR) .*?LETTER(?: [A-Z]{3,})* ([A-Z])(?: WITH .*)?"
)
_INVISIBLE = frozenset("\u115f\u1160\u2800")  # letters by their category, and nothing to be seen

_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_POSSESSIVE = re.compile(r"'s\b")
_WORD = re.compile(rf"[\w{SYMBOLS}]+")
_SYMBOL = re.compile(rf"[{SYMBOLS}]")
_INNER_MARK = re.compile(r"(?<=[^\W_])[-'](?=[^\W_])")
_LETTERS_APART = [  # t w o  w o r d s, and w - o - r - d  -  w - o - r - d
    re.compile(rf"(?<![^\W_])[^\W_](?:[\W_]{{1,{gap}}}[^\W_](?![^\W_])){{2,}}") for gap in (1, 6)
]
_APART = re.compile(r"[\W_]+")


def fold(text: str) -> str:
    """Lower-case text in which what looks like a plain letter is one, and what can't be seen is gone."""
    return "".join(c if c.isascii() and c.isprintable() else _plain(c) for c in text).lower()


@lru_cache(maxsize=4096)
def _plain(char: str) -> str:
    if char.isspace():
        return char
    return "".join(map(_plain_part, unicodedata.normalize("NFKD", char)))


def _plain_part(char: str) -> str:
    """One part of a decomposed character: accents, zero-width and control characters vanish."""
    if char.isascii() and char.isprintable():
        return char
    if char in _INVISIBLE or unicodedata.category(char) in ("Mn", "Me", "Cf", "Cc"):
        return ""
    looks = _LOOKS.get(char) or _LOOKS.get(char.lower())
    if looks:
        return looks
    named = _LATIN_NAME.fullmatch(unicodedata.name(char, ""))
    return named[1] if named else char


def views(text: str) -> list[str]:
    """The different lower-case texts that a reader may see in this one; for most texts it is one or two."""
    found: dict[str, None] = {}
    for view in _plain_views(text):
        found[view] = None
        found[_SYMBOL.sub(" ", view)] = None  # *word*, and words that a star holds together
        found[_INNER_MARK.sub("", view)] = None  # wo-rd
        for run in _LETTERS_APART:
            found[run.sub(_together, view)] = None
            found[run.sub(_after_article, view)] = None  # a w o r d
    return list(found)


def letters_apart(text: str) -> list[str]:
    """The runs of letters set apart, each put together: words or whole sentences, whose gaps nobody knows."""
    widest = _LETTERS_APART[-1]
    runs = (_together(run) for view in _plain_views(text) for run in widest.finditer(view))
    return list(dict.fromkeys(runs))


def _plain_views(text: str) -> tuple[str, str]:
    return _NOT_ASCII.sub(" ", text).lower(), fold(text)


def _together(run: re.Match[str]) -> str:
    return _APART.sub("", run[0])


def _after_article(run: re.Match[str]) -> str:
    letters = _together(run)
    return f"{letters[0]} {letters[1:]}" if letters[0] in "ai" and len(letters) > 3 else letters


def split_words(view: str) -> tuple[str, ...]:
    """The words of a view without their possessive s; letters stand together with digits and SYMBOLS."""
    return tuple(_WORD.findall(_POSSESSIVE.sub("", view.replace("_", " "))))
