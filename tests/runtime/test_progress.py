# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime import progress as progress_module
from predict2_runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds on a clock that only the test moves."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


@pytest.fixture
def run(clock):
    """run(progress, stage, seconds of each step): the steps, one after the other."""

    def run(progress, stage, seconds):
        for step, took in enumerate(seconds, start=1):
            clock.now += took
            progress.done(stage, step, len(seconds))

    return run


@pytest.fixture
def heard():
    return []


@pytest.fixture
def progress(clock, heard):
    return Progress(heard.append, lambda: None)


def test_the_rest_is_told_from_the_steps_so_far(progress, run, heard):
    run(progress, "denoise_video", [10, 1, 1, 4])
    # 30: all that is known. 2 and 1: the slow first step is left out once there are others.
    assert [event.eta_s for event in heard] == [30, 2, 1, 0]


def test_what_no_solver_does_has_no_rest(progress, run, heard):
    run(progress, "check_prompt", [1])
    run(progress, "denoise_image", [1, 1])
    run(progress, "decode_image", [1])
    assert [event.eta_s for event in heard] == [None, 1, 0, None]


def test_the_rest_is_unknown_while_another_solver_follows(progress, run, heard):
    with progress.more_to_come():
        run(progress, "denoise_image", [1, 1])
    run(progress, "denoise_video", [5, 5])
    assert [event.eta_s for event in heard] == [None, None, 5, 0]


def test_time_is_booked_to_the_stage_that_ends(progress, run):
    run(progress, "check_prompt", [0.5])
    run(progress, "denoise_image", [1, 2])
    assert progress.seconds() == {"check_prompt": 0.5, "denoise_image": 3, "total": 3.5}


def test_what_runs_beside_is_booked_by_itself_and_added_up_for_the_request(progress, run):
    run(progress, "check_prompt", [1])
    first = progress.beside()
    run(first, "denoise_video", [2, 2])
    second = progress.beside()
    run(second, "denoise_video", [3, 3])
    assert first.seconds()["denoise_video"] == 4
    assert progress.seconds() == {"check_prompt": 1, "total": 11}
    assert progress.all_seconds() == {"check_prompt": 1, "denoise_video": 10, "total": 11}
    assert progress.all_steps() == 4
