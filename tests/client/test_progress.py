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


def test_closed_stderr_does_not_cost_the_result(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    with progress.shown("a.mp4", quiet=False) as on_event:
        on_event(Event("write", 1, 1, 1.0))


def test_terminal_gets_a_bar_with_stage_and_step(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = pty.openpty()
    os.set_blocking(reader, False)
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress.shown("[a].mp4", quiet=False) as on_event:
            on_event(Event("encode_text", 1, 1, 0.1))
            on_event(Event("denoise_video", 3, 36, 1.0))
        monkeypatch.undo()
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read_all(reader))
    os.close(reader)
    assert "[a].mp4: waiting" in shown
    assert re.search(r"\[a\]\.mp4: denoise_video .* 3/36 0:00:0\d left: ", shown)


def read_all(descriptor):
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts).decode()
