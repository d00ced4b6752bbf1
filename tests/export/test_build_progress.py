# SPDX-License-Identifier: Apache-2.0
import io

import pytest
from rich.console import Console

from predict2_export import build_progress
from predict2_export.build_progress import Phase, Phases, watched


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def test_phases_lie_in_each_other_and_count_their_steps():
    seen = []
    phases = Phases(seen.append)
    phases.start("outer", 3)
    phases.start("inner", 2)
    assert phases.step("inner", 0)
    assert phases.step("outer", 1)
    phases.finish("inner")
    assert seen[-2] == (Phase("outer", 3, 2), Phase("inner", 2, 1))
    assert seen[-1] == (Phase("outer", 3, 2),)


def test_a_step_of_a_phase_that_nobody_began_is_no_error():
    assert Phases(lambda phases: None).step("unknown", 3)


def test_nothing_goes_on_once_it_was_stopped():
    phases = Phases(lambda phases: None)
    phases.start("outer", 3)
    phases.cancel()
    assert not phases.step("outer", 0)
    assert phases.failure is None


def test_what_fails_to_show_is_kept_and_not_shown_again():
    calls = []

    def broken(phases):
        calls.append(phases)
        raise BrokenPipeError

    phases = Phases(broken)
    phases.start("outer", 3)  # raises nothing
    assert not phases.step("outer", 0)
    assert isinstance(phases.failure, BrokenPipeError)
    assert len(calls) == 1


def test_a_terminal_shows_a_bar_for_each_phase_down_to_a_depth():
    screen = console(terminal=True)
    with watched("vae_decoder/next", pytest.fail, screen) as phases:
        for name in ("Building engine", "Timing tactics", "Timing tensors", "Too deep"):
            phases.start(name, 6)
        phases.step("Timing tactics", 3)
    shown = screen.file.getvalue()
    assert "vae_decoder/next: Building engine" in shown
    assert "Timing tensors" in shown
    assert "4/6" in shown
    assert "Too deep" not in shown


def test_elsewhere_a_line_is_told_now_and_then(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(build_progress.time, "monotonic", lambda: now)
    lines, screen = [], console(terminal=False)
    with watched("vae_decoder/next", lines.append, screen) as phases:
        phases.start("Building engine", 6)
        for step in range(6):
            now += 11
            phases.step("Building engine", step)
        phases.finish("Building engine")
    assert lines == [
        "vae_decoder/next: 33 s, Building engine 3/6",
        "vae_decoder/next: 66 s, Building engine 6/6",
    ]
    assert not screen.file.getvalue()
