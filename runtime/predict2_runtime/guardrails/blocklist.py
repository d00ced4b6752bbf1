# SPDX-License-Identifier: Apache-2.0
"""Lists of words that no prompt may hold, also misspelt, inflected or written with look-alikes."""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path

from predict2_spec.errors import EngineMismatchError

from .folding import SYMBOLS, fold, letters_apart, split_words, views
from .inflection import base_forms

SHIPPED_LISTS = Path(__file__).parent / "lists"
LISTS = ("custom", "whitelist", "exact_match")  # the subfolders, as Cosmos-Guardrail1 names them

# Shorter words written together, or found inside letters set apart, are mostly chance: u.s. and us.
_LONG = 5
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


@dataclass(frozen=True)
class Index:
    """Entries by how they begin; those of many words also as one word."""

    # By the outlines of their first and second word; "" where there is no second.
    entries: Mapping[str, Mapping[str, Sequence[Entry]]]
    # Of the outlines of single words, longest first; by their first _LONG signs.
    lengths: Mapping[str, Sequence[int]]


Match = tuple[int, int, Entry]  # start, stop, entry
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
        for run in letters_apart(text):
            entry = self._find_inside(run)
            if entry:
                return entry.category, entry.text
        return None

    def _find(self, words: Sequence[str]) -> Entry | None:
        """The first entry among the words that no single entry of the whitelist covers.

        The original also compares exact entries by difflib's ratio. With its limit, (length - 0.4) / length, only
        equal strings pass: one letter more gives 1 - 1 / (2 length + 1), one less or another even less than that.
        """
        return _first_uncovered(
            len(words),
            _matches(self.whitelist, _readings(words, _forms), operator.eq),
            _matches(self.custom, _readings(words, _spellings), _spells),
            _matches(self.exact_match, _readings(words, _as_written), operator.eq),
        )

    def _find_inside(self, letters: str) -> Entry | None:
        """The first long entry anywhere in letters without gaps that no single entry of the whitelist covers."""
        return _first_uncovered(
            len(letters),
            _matches_inside(self.whitelist, letters, operator.eq),
            _matches_inside(self.custom, letters, _spells),
            _matches_inside(self.exact_match, letters, operator.eq),
        )


def _first_uncovered(
    length: int, covers: Iterable[Match], *matches: Iterable[Match]
) -> Entry | None:
    reach = [0] * length  # to where the covers reach that begin here
    for start, stop, _ in covers:
        reach[start] = max(reach[start], stop)
    reach = list(accumulate(reach, max))  # that begin here or before
    found = (entry for start, stop, entry in chain(*matches) if reach[start] < stop)
    return next(found, None)


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
    listed = list(entries)
    joined = (replace(entry, words=("".join(entry.words),)) for entry in listed if entry.words[1:])
    index: dict[str, dict[str, list[Entry]]] = {}
    lengths: dict[str, set[int]] = {}
    for entry in chain(listed, (entry for entry in joined if len(entry.words[0]) >= _LONG)):
        first, second = (*map(_outline, entry.words[:2]), "")[:2]
        index.setdefault(first, {}).setdefault(second, []).append(entry)
        if not second and len(first) >= _LONG:
            lengths.setdefault(first[:_LONG], set()).add(len(first))
    return Index(index, {begin: sorted(found, reverse=True) for begin, found in lengths.items()})


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
) -> Iterator[Match]:
    """Each entry that neighbouring words can be read as."""
    for start, firsts in enumerate(readings):
        for first, _ in firsts:
            by_second = index.entries.get(first)
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


def _matches_inside(
    index: Index, letters: str, equal: Callable[[str, str], bool]
) -> Iterator[Match]:
    """Each entry of one long word that neighbouring letters can be read as."""
    outline = _outline(letters)
    for start in range(len(letters)):
        for length in index.lengths.get(outline[start : start + _LONG], ()):
            stop = start + length
            for entry in index.entries.get(outline[start:stop], {}).get("", ()):
                if equal(letters[start:stop], entry.words[0]):
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
