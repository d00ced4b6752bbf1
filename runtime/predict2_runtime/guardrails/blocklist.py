# SPDX-License-Identifier: Apache-2.0
"""Lists of words that no prompt may hold, also misspelt, inflected or written with look-alikes."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from predict2_spec.errors import EngineMismatchError

from .folding import SYMBOLS, fold, split_words, views
from .inflection import base_forms

SHIPPED_LISTS = Path(__file__).parent / "lists"
LISTS = ("custom", "whitelist", "exact_match")  # the subfolders, as Cosmos-Guardrail1 names them

# What a prompt may hold where an entry has the letter on the left.
_WRITTEN_AS = {
    "a": "a@*4",
    "e": "e*3",
    "i": "i*l1",
    "o": "o*0@",
    "u": "u*v",
    "v": "v*u",
    "l": "l1",
    "s": "s$5",
    "t": "t7",
}
_OUTLINE = str.maketrans(dict.fromkeys("aeiouvl@*4310", "*") | {"$": "s", "5": "s", "7": "t"})
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}")  # no English word has a letter three times in a row


@dataclass(frozen=True)
class Entry:
    """One line of a list."""

    words: tuple[str, ...]
    text: str  # as it stands in the file
    category: str  # the file's name without its ending


# Entries by the outlines of their first and second word; "" where there is no second.
Index = Mapping[str, Mapping[str, Sequence[Entry]]]
Reading = tuple[str, str]  # a word that a prompt's word may be read as: its outline, its letters


@dataclass(frozen=True)
class Blocklist:
    """What must not be said, and what may be said nevertheless."""

    custom: Index  # found also in other spellings and forms
    exact_match: Index  # found only as it stands there; both ignore case and punctuation
    whitelist: Index

    @classmethod
    def read(cls, *folders: Path) -> "Blocklist":
        """The lists of all folders together. A whitelist's entry strikes the same entry out of every list.

        Raises:
            EngineMismatchError: a folder holds no lists, or a file of it can't be read.
        """
        entries: dict[str, list[Entry]] = {name: [] for name in LISTS}
        for folder in folders:
            read = {name: _read_list(folder / name) for name in LISTS}
            if not any(read.values()):
                raise EngineMismatchError(
                    f"blocklist folder {folder} has no entry in {', '.join(LISTS)}; put text files with "
                    "an entry a line there, or name another folder"
                )
            for name in LISTS:
                entries[name] += read[name]
        excused = {entry.words for entry in entries["whitelist"]}
        return cls(
            _index(entry for entry in entries["custom"] if entry.words not in excused),
            _index(entry for entry in entries["exact_match"] if entry.words not in excused),
            _index(entries["whitelist"]),
        )

    def find(self, text: str) -> tuple[str, str] | None:
        """(category, entry) of the first entry found in the text."""
        for view in views(text):
            entry = self._find(split_words(view))
            if entry:
                return entry.category, entry.text
        return None

    def _find(self, words: Sequence[str]) -> Entry | None:
        """The first entry among the words that no single entry of the whitelist covers.

        The original also compares exact entries by difflib's ratio. With its limit, (length - 0.4) / length, only
        equal strings pass: one letter more gives 1 - 1 / (2 length + 1), one less or another even less than that.
        """
        reach = [0] * len(words)  # to where the whitelist's entries cover that begin here
        for start, stop, _ in _matches(self.whitelist, _readings(words, _forms), operator.eq):
            reach[start] = max(reach[start], stop)
        reach = list(accumulate(reach, max))  # that begin here or before
        for index, spell, equal in (
            (self.custom, _spellings, _spells),
            (self.exact_match, _as_written, operator.eq),
        ):
            for start, stop, entry in _matches(index, _readings(words, spell), equal):
                if reach[start] < stop:
                    return entry
        return None


def _read_list(folder: Path) -> list[Entry]:
    try:
        files = sorted(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise EngineMismatchError(
            f"blocklist folder {folder} can't be read ({error}); mend it, or remove it"
        ) from error
    return [
        Entry(words, line, file.stem)
        for file in files
        if not file.is_dir() and not file.name.startswith(".")
        for line in _read_lines(file)
        if len("".join(words := split_words(fold(line)))) > 1  # of an emoticon less is left
    ]


def _read_lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise EngineMismatchError(
            f"blocklist {file} can't be read ({error}); save it as UTF-8 text, or remove it"
        ) from error
    return [line for line in lines if line and not line.startswith("#")]


def _index(entries: Iterable[Entry]) -> Index:
    index: dict[str, dict[str, list[Entry]]] = {}
    for entry in entries:
        first, second = (*map(_outline, entry.words[:2]), "")[:2]
        index.setdefault(first, {}).setdefault(second, []).append(entry)
    return index


def _outline(word: str) -> str:
    """Equal for all spellings of a word, and for some other words."""
    return word.translate(_OUTLINE)


def _readings(
    words: Sequence[str], spell: Callable[[str], Iterable[str]]
) -> list[Sequence[Reading]]:
    known = {word: [(_outline(form), form) for form in spell(word)] for word in set(words)}
    return [known[word] for word in words]


def _matches(
    index: Index, readings: Sequence[Sequence[Reading]], equal: Callable[[str, str], bool]
) -> Iterator[tuple[int, int, Entry]]:
    """(start, stop, entry) for each entry that neighbouring words can be read as."""
    for start, firsts in enumerate(readings):
        for first, _ in firsts:
            by_second = index.get(first)
            if not by_second:
                continue
            following = readings[start + 1] if start + 1 < len(readings) else ()
            for second, _ in (*following, ("", "")):  # longer entries first: they say more
                for entry in by_second.get(second, ()):
                    stop = start + len(entry.words)
                    if stop <= len(readings) and all(
                        any(equal(form, word) for _, form in forms)
                        for forms, word in zip(readings[start:stop], entry.words, strict=True)
                    ):
                        yield start, stop, entry


def _spells(form: str, word: str) -> bool:
    """Whether the prompt's form can be meant for the entry's word."""
    return (
        len(form) == len(word)
        and all(c in _WRITTEN_AS.get(letter, letter) for c, letter in zip(form, word, strict=True))
        and _is_word(form)
    )


def _is_word(form: str) -> bool:
    """Stars, digits and prices mean no word."""
    return any(c.isalpha() or c == "@" for c in form)


def _as_written(word: str) -> Iterable[str]:
    return dict.fromkeys((word, word.strip(SYMBOLS)))


def _forms(word: str) -> Iterable[str]:
    return base_forms(word.strip(SYMBOLS))


def _spellings(word: str) -> Iterable[str]:
    """What a word may be meant for: *word*, wooord, word5, words."""
    meant = {word: None, word.strip("*"): None}
    if _STRETCHED.search(word):
        meant |= {_STRETCHED.sub(r"\1", word): None, _STRETCHED.sub(r"\1\1", word): None}
    if word.endswith(("$", "5")) and _is_word(word):
        meant |= {form[:-1] + "s": None for form in meant}
    return dict.fromkeys(base for form in meant for base in base_forms(form))
