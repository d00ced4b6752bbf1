# SPDX-License-Identifier: Apache-2.0
"""When a request is tried again, and after what pause."""

import pytest

from predict2_client import patience
from predict2_client.patience import Patience


def test_pauses_grow_up_to_a_limit_and_differ_between_clients():
    pauses = [[patience.pause_s(attempt) for attempt in range(40)] for _ in range(20)]
    for attempt, found in enumerate(zip(*pauses, strict=True)):
        longest = min(patience.LONGEST_PAUSE_S, patience.FIRST_PAUSE_S * 2**attempt)
        assert all(longest / 2 <= pause <= longest for pause in found)
        assert len(set(found)) > 1


@pytest.mark.parametrize("trouble", ["busy", "away"])
def test_what_was_never_accepted_is_tried_for_as_long_as_asked(trouble):
    assert Patience(0.0).next_pause_s(trouble, safe=True) is None
    patient = Patience(1e6)
    assert all(patient.next_pause_s(trouble, safe=False) for _ in range(100))


@pytest.mark.parametrize("trouble", ["busy", "away"])
def test_no_attempt_begins_after_that_time(monkeypatch, trouble):
    monkeypatch.setattr(patience.random, "uniform", lambda low, high: high)
    patient = Patience(3.5)
    assert patient.next_pause_s(trouble, safe=True) == 1
    assert patient.next_pause_s(trouble, safe=True) == 2
    assert patient.next_pause_s(trouble, safe=True) is None  # 4 s are longer than the whole


@pytest.mark.parametrize(
    ("trouble", "retry_for_s", "safe", "tries"),
    [
        ("lost", 0.0, True, patience.RESENDS),
        ("lost", 1e6, True, patience.RESENDS),
        ("lost", 0.0, False, 0),
        ("lost", 1e6, False, patience.RESENDS),
        ("no model", 0.0, True, 0),
        ("no model", 1e6, True, patience.RESENDS),
        ("late", 1e6, True, 0),
        ("final", 1e6, True, 0),
    ],
)
def test_what_may_have_run_is_tried_a_few_times_and_only_where_that_is_safe_or_asked_for(
    trouble, retry_for_s, safe, tries
):
    patient = Patience(retry_for_s)
    pauses = [patient.next_pause_s(trouble, safe=safe) for _ in range(10)]
    assert [pause is not None for pause in pauses] == [True] * tries + [False] * (10 - tries)
