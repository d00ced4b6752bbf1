# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr, with and without a terminal."""

import contextlib
import io
import os
import pty
import re
import sys

from predict2_client import progress
from predict2_spec.results import Event


def test_quiet_shows_nothing_and_asks_for_no_events():
    with progress.shown("a.mp4", quiet=True) as on_event:
        assert on_event is None


def test_lines_are_few_and_name_stage_step_and_time(capsys):
    with progress.shown("a.mp4", quiet=False) as on_event:
        for step in range(1, 37):
            on_event(Event("denoise_video", step, 36, float(step)))
        on_event(Event("write", 1, 1, 37.0))
    assert capsys.readouterr().err.splitlines() == [
        "a.mp4: denoise_video 15/36, 15.0 s",
        "a.mp4: denoise_video 30/36, 30.0 s",
        "a.mp4: denoise_video 36/36, 36.0 s",
        "a.mp4: write 1/1, 37.0 s",
    ]


def test_line_says_what_is_left_where_the_server_knows(capsys):
    with progress.shown("a.mp4", quiet=False) as on_event:
        on_event(Event("encode_text", 1, 1, 1.0, eta_s=None))
        on_event(Event("denoise", 30, 36, 30.0, eta_s=6.4))
        on_event(Event("denoise", 36, 36, 36.0, eta_s=0.0))
    assert capsys.readouterr().err.splitlines() == [
        "a.mp4: encode_text 1/1, 1.0 s",
        "a.mp4: denoise 30/36, 30.0 s, some 6 s left",
        "a.mp4: denoise 36/36, 36.0 s",
    ]


def test_closed_stderr_does_not_cost_the_result(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with progress.shown("a.mp4", quiet=False) as on_event:
        on_event(Event("write", 1, 1, 1.0))


@contextlib.contextmanager
def terminal(monkeypatch):
    """A terminal as stderr; gives a list that holds what it showed, once it is closed."""
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    os.set_blocking(reader, False)
    seen = []
    with os.fdopen(writer, "w") as end:
        monkeypatch.setattr(sys, "stderr", end)
        yield seen
        monkeypatch.undo()
        seen.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_all(reader)))
    os.close(reader)


def test_terminal_gets_a_bar_with_stage_and_step(monkeypatch):
    with terminal(monkeypatch) as seen, progress.shown("[a].mp4", quiet=False) as on_event:
        on_event(Event("encode_text", 1, 1, 0.1))
        on_event(Event("denoise_video", 3, 36, 1.0))
    assert "[a].mp4: waiting" in seen[0]
    assert re.search(r"\[a\]\.mp4: denoise_video .* 3/36 0:00:0\d left: ", seen[0])


def test_bar_shows_the_servers_own_estimate(monkeypatch):
    with terminal(monkeypatch) as seen, progress.shown("a.mp4", quiet=False) as on_event:
        on_event(Event("denoise", 3, 36, 1.0, eta_s=3725.0))
    assert re.search(r"3/36 0:00:0\d left: 1:02:0[45]", seen[0])


def test_escape_codes_in_a_label_or_stage_do_not_reach_the_terminal(monkeypatch):
    with terminal(monkeypatch) as seen, progress.shown("a\x1b]0;b", quiet=False) as on_event:
        on_event(Event("c\x9bd", 3, 36, 1.0))
    assert "a?]0;b: waiting" in seen[0]
    assert "a?]0;b: c?d" in seen[0]


def test_requests_at_the_same_time_have_a_bar_each(monkeypatch):
    with (
        terminal(monkeypatch) as seen,
        progress.board(quiet=False) as show,
        show("a.mp4") as first,
        show("b.mp4") as second,
    ):
        first(Event("denoise", 2, 9, 1.0))
        second(Event("denoise", 5, 9, 1.0))
    together = re.compile(r"a\.mp4: denoise .* 2/9 .*\s+b\.mp4: denoise .* 5/9 ")
    assert together.search(seen[0])


def test_requests_at_the_same_time_have_lines_of_their_own(capsys):
    with progress.board(quiet=False) as show, show("a.mp4") as first, show("b.mp4") as second:
        first(Event("denoise", 9, 9, 1.0))
        second(Event("denoise", 9, 9, 2.0))
    assert capsys.readouterr().err.splitlines() == [
        "a.mp4: denoise 9/9, 1.0 s",
        "b.mp4: denoise 9/9, 2.0 s",
    ]


def read_all(descriptor):
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts).decode()
