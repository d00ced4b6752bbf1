# SPDX-License-Identifier: Apache-2.0
"""The simulated queue against formulas of queueing theory, and the planner's answers."""

import math

import numpy as np
import pytest

from predict2_export import traffic as traffics
from predict2_export.gpus import find_gpu
from predict2_export.traffic import Duration, Stream, Traffic
from predict2_export.wait_plot import plot
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import find_preset


def erlang_c(servers, load):
    """Probability that a request of an M/M/c queue waits: Erlang's second formula, by the recursion of his first."""
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = load * blocked / (k + load * blocked)
    utilisation = load / servers
    return blocked / (1 - utilisation * (1 - blocked))


def one_task(per_hour, seconds):
    return Traffic((Stream("video2world", per_hour, Duration(seconds, "a test", measured=True)),))


def arrivals_of(rate, count, seed=1):
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


# Means of a finite run of a queue vary: the tolerances are some twice what five other seeds were seen to differ by.
@pytest.mark.parametrize(
    ("servers", "utilisation", "count", "within"),
    [(1, 0.6, 200_000, 0.1), (8, 0.8, 200_000, 0.15), (100, 0.9, 800_000, 0.3)],
)
def test_waits_are_erlangs(servers, utilisation, count, within):
    """M/M/c: the share that waits, and the mean wait C / (c mu - lambda) of all."""
    load = servers * utilisation
    services = np.random.default_rng(2).exponential(1.0, count)
    waited = traffics.waits(arrivals_of(load, count), services, servers)[count // 5 :]
    probability = erlang_c(servers, load)
    assert (waited > 0).mean() == pytest.approx(probability, rel=within)
    assert waited.mean() == pytest.approx(probability / (servers - load), rel=within)


def test_thousands_of_gpus_take_turns_as_if_looked_through_one_by_one():
    """Such means vary too much to be compared; a plain search for the GPU that is free first gives the same waits."""
    arrivals = arrivals_of(2200.0, 10_000)
    services = np.random.default_rng(2).exponential(1.0, len(arrivals))
    free, wanted = np.zeros(2000), []
    for at, takes in zip(arrivals, services, strict=True):
        gpu = free.argmin()
        begins = max(at, free[gpu])
        free[gpu] = begins + takes
        wanted.append(begins - at)
    assert max(wanted) > 0
    np.testing.assert_array_equal(traffics.waits(arrivals, services, 2000), wanted)


@pytest.mark.parametrize("utilisation", [0.3, 0.8])
def test_equal_services_wait_half_as_long(utilisation):
    """M/D/1, by Pollaczek and Khinchine: rho D / (2 (1 - rho))."""
    service = traffics.simulate(one_task(3600 * utilisation / 20, 20.0), 1, "idle")
    assert service.utilisation == pytest.approx(utilisation)
    wanted = utilisation * 20.0 / (2 * (1 - utilisation))
    assert service.mean_wait_s == pytest.approx(wanted, rel=0.05)
    assert service.mean_waiting == pytest.approx(wanted * utilisation / 20, rel=0.05)


def test_a_mix_waits_by_the_spread_of_its_services():
    """M/G/1: lambda E[S^2] / (2 (1 - rho))."""
    streams = (
        Stream("video2world", 12, Duration(150.0, "", measured=True)),
        Stream("text2image", 120, Duration(3.0, "", measured=True)),
    )
    traffic = Traffic(streams)
    squares = (12 * 150.0**2 + 120 * 3.0**2) / 3600
    wanted = squares / (2 * (1 - traffic.busy_gpus))
    assert traffics.simulate(traffic, 1, "idle").mean_wait_s == pytest.approx(wanted, rel=0.1)


def test_gpus_with_queues_of_their_own_are_so_many_single_ones():
    traffic, tenth = one_task(3600, 8.0), one_task(360, 8.0)
    of_ten = traffics.simulate(traffic, 10, "random")
    assert of_ten.mean_wait_s == pytest.approx(traffics.simulate(tenth, 1, "idle").mean_wait_s)
    assert traffics.simulate(traffic, 10, "idle").mean_wait_s < of_ten.mean_wait_s / 5


@pytest.mark.parametrize("balance", ["random", "idle"])
@pytest.mark.parametrize("measure", ["mean", "p95"])
def test_the_answer_is_the_fewest_that_do(balance, measure):
    traffic = one_task(400, 150.0)
    chosen = traffics.gpus_needed(traffic, 60.0, measure, balance)
    assert chosen.wait_s(measure) <= 60.0
    fewer = chosen.gpus - 1
    if fewer > traffic.busy_gpus:
        assert traffics.simulate(traffic, fewer, balance).wait_s(measure) > 60.0
    rows = traffics.around(traffic, chosen.gpus, balance)
    assert chosen in rows
    assert [row.gpus for row in rows] == sorted(row.gpus for row in rows)


def test_thousands_of_gpus_are_planned():
    chosen = traffics.gpus_needed(one_task(72_000, 150.0), 30.0, "mean", "idle")
    assert 3000 < chosen.gpus < 3100


def test_what_cannot_keep_up_is_refused():
    with pytest.raises(
        InvalidRequestError, match=r"2 GPUs can't keep up: the traffic is work for 2\.5"
    ):
        traffics.simulate(one_task(90, 100.0), 2, "idle")  # fmt: skip
    with pytest.raises(InvalidRequestError, match="up to 16384"):
        traffics.gpus_needed(one_task(1e6, 100.0), 30.0, "mean", "random")


@pytest.mark.parametrize("text", ["", "video2world", "video2world=x", "video2world=0", "video2world=-1", "video2world=nan", "video2world=inf", "clips=3", "text2image=1,text2image=2"])  # fmt: skip
def test_a_wrong_traffic_is_refused_with_an_example(text):
    with pytest.raises(InvalidRequestError, match="such as video2world=30"):
        traffics.parse_traffic(text)


def test_a_traffic_of_several_tasks_is_read():
    assert traffics.parse_traffic("video2world=30, text2image=1.5") == {"video2world": 30, "text2image": 1.5}  # fmt: skip


def line(workload, seconds, **changes):
    return {
        "workload": workload, "whole_s": seconds, "ours": True, "level": "exact", "date": "2026-01-02",
        "machine": {"gpu": "NVIDIA H200"}, **changes,
    }  # fmt: skip


def test_measured_seconds_are_those_of_our_quickest_engine():
    lines = [
        line("2b-720p-16fps-video2world", 190.0),
        line("2b-720p-16fps-video2world", 180.0),
        line("2b-720p-16fps-video2world", 100.0, ours=False),
        line("2b-720p-16fps-video2world", 110.0, level="fp8"),
        line("14b-720p-16fps-video2world", 90.0),
        {"benchmark": "something else"},
    ]
    found = traffics.measured_duration(lines, "2b-720p-16fps", "video2world", "exact")
    assert (found.seconds, found.measured) == (180.0, True)
    assert found.source == "measured on NVIDIA H200, 2026-01-02"
    assert traffics.measured_duration(lines, "2b-720p-16fps", "text2image", "exact") is None


def test_a_clip_from_text_takes_its_picture_and_its_clip():
    lines = [line("p-text2image", 4.0), line("p-video2world", 180.0)]
    assert traffics.measured_duration(lines, "p", "text2world", "exact").seconds == 184.0
    assert traffics.measured_duration(lines[:1], "p", "text2world", "exact") is None


def test_without_measurements_it_is_the_floor_and_says_so():
    found = traffics.floor_duration(find_preset("2b-720p-16fps"), find_gpu("H200"), "video2world", "exact")  # fmt: skip
    assert not found.measured
    assert "no measurement" in found.source
    # 72 evaluations of what docs/performance.md counts, at the datasheet's 989 TFLOP/s instead of 790
    assert found.seconds == pytest.approx(175 * 790 / 989, rel=0.03)


def test_the_plot_shows_every_number_of_gpus():
    services = traffics.around(one_task(40, 150.0), 4, "random")
    drawn = plot("a <title>", services, 60.0, 4)
    assert drawn.startswith("<svg")
    assert "a &lt;title&gt;" in drawn
    assert drawn.count("<circle") == 2 * len(services)
    assert drawn.count('r="6"') == 2
    assert all(math.isfinite(float(n)) for n in drawn.split('points="')[1].split('"')[0].replace(",", " ").split())  # fmt: skip
