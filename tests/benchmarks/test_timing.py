# SPDX-License-Identifier: Apache-2.0
"""The timer where there is no GPU, and what it reads of one."""

import pytest

from benchmarks import ceilings, results
from benchmarks.timing import Seconds, clocks_under, gpu_seconds, read_clocks


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)


def test_each_run_is_timed_after_the_warm_up():
    calls = []
    found = gpu_seconds(lambda: calls.append(1), runs=4, warmup=2)
    assert len(found) == 4
    assert len(calls) >= 6
    assert all(seconds >= 0 for seconds in found)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("1605, 54, 688.20\n", {"sm_mhz": 1605.0, "temperature_c": 54.0, "power_w": 688.2}),
        ("1605, [N/A], 688.20\n", {"sm_mhz": 1605.0, "power_w": 688.2}),
        ("", {}),
        ("No devices were found\n", {}),
    ],
)
def test_clocks_are_read_and_what_is_unknown_left_out(answer, expected):
    assert read_clocks(answer) == expected


def test_the_load_goes_on_until_the_clocks_are_read(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nsleep 0.3\necho 1605, 54, 688.20\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    queued, repeated = [1] * 5, []
    found = clocks_under(lambda: repeated.append(1), lambda: bool(queued) and queued.pop())
    assert found == {"sm_mhz": 1605.0, "temperature_c": 54.0, "power_w": 688.2}
    assert repeated  # once the queue was empty
    repeated.clear()
    clocks_under(lambda: repeated.append(1), lambda: True)
    assert not repeated


def test_without_nvidia_smi_there_are_no_clocks(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert clocks_under(lambda: None, lambda: False) == {}


def test_clocks_go_into_the_results_where_there_are_any():
    assert results.summary(Seconds([1.0], {"sm_mhz": 1605.0}))["clocks"] == {"sm_mhz": 1605.0}
    assert "clocks" not in results.summary(Seconds([1.0], {}))
    assert "clocks" not in results.summary([1.0])


def test_traffic_is_held_beside_the_newest_copy_of_the_same_machine():
    assert ceilings.traffic(2e9, 0.5) == "4 GB/s"
    for rate in (5.0, 8.0):
        results.record(f"{ceilings.PREFIX}{ceilings.COPY}", "make gpu", {"gb_s": rate})
    assert ceilings.traffic(2e9, 0.5) == "4 GB/s, 50% of a copy"
