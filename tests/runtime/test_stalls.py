# SPDX-License-Identifier: Apache-2.0
import os
import time

import pytest

from predict2_runtime.stalls import at_work, find_stalled


def age(folder, seconds):
    for mark in folder.iterdir():
        os.utime(mark, (time.monotonic() - seconds,) * 2)


def test_a_stage_that_works_for_too_long_is_found_by_its_name(tmp_path):
    with at_work(tmp_path, "text2image_denoiser"), at_work(tmp_path, "vae_decoder"):
        assert find_stalled(tmp_path, 10) == ""
        age(tmp_path, 60)
        assert find_stalled(tmp_path, 10) in ("text2image_denoiser", "vae_decoder")
        assert find_stalled(tmp_path, 100) == ""


def test_a_stage_that_is_done_or_failed_is_not(tmp_path):
    with pytest.raises(ZeroDivisionError), at_work(tmp_path, "vae_decoder"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    assert find_stalled(tmp_path, 0) == ""


def test_a_clock_that_is_set_forward_makes_nothing_look_stalled(tmp_path, monkeypatch):
    with at_work(tmp_path, "vae_decoder"):
        monkeypatch.setattr(time, "time", lambda: 1e12)
        assert find_stalled(tmp_path, 10) == ""


def test_a_stage_works_where_no_mark_can_be_made(tmp_path):
    with at_work(tmp_path / "gone", "vae_decoder"):
        pass


def test_without_a_folder_nobody_looks():
    with at_work(None, "vae_decoder"):
        pass
