# SPDX-License-Identifier: Apache-2.0
"""What reaches a terminal."""

import io
import sys

import pytest

from predict2_client import terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größer 🎈 [b]", "größer 🎈 [b]"),
        ("two\nlines", "two\nlines"),
        ("\x1b[2J\x07\r\x9b\x7f", "?[2J????"),
        ("\udcff\u202e\u200b", "???"),  # no text, a turn of the writing direction, nothing to see
        ("", ""),
    ],
)
def test_what_does_not_print_is_replaced(text, shown):
    assert terminal.printable(text) == shown


def test_note_is_a_line_on_stderr(capsys):
    terminal.note("a\x1bb")
    assert capsys.readouterr() == ("", "a?b\n")


def test_closed_stderr_is_no_error(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    terminal.note("a")
