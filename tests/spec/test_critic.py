# SPDX-License-Identifier: Apache-2.0
import time

import pytest

from predict2_spec.critic import (
    Component,
    Judged,
    Reading,
    from_json,
    parse,
    ranked,
    score,
    to_json,
)

RESPONSE = """<think>
<overview>A robot arm lifts a cup.</overview>
<component name="Gripper">
<analysis>The fingers keep < 5 mm of play.</analysis>
<anomaly>No</anomaly>
</component>
<component name='Cup'>
<analysis>It melts
into the table.</analysis>
<anomaly> yes </anomaly>
</component>
</think>
<answer>Yes</answer>"""


def test_a_response_in_the_form_asked_for_is_taken_apart():
    assert parse(RESPONSE) == Reading(
        "A robot arm lifts a cup.",
        (
            Component("Gripper", "The fingers keep < 5 mm of play.", False),
            Component("Cup", "It melts\ninto the table.", True),
        ),
        True,
    )


@pytest.mark.parametrize(
    ("response", "reading"),
    [
        ("", Reading("", (), None)),
        ("nothing but words <answer>maybe</answer>", Reading("", (), None)),
        ("<ANSWER> No </ANSWER>", Reading("", (), False)),
        ("<overview>cut o", Reading("cut o", (), None)),
        ("<component><analysis>a</analysis>", Reading("", (Component("", "a", False),), None)),
        (
            "<component name=Arm ><analysis>not closed<anomaly>Yes<answer>yes</answer>",
            Reading("", (Component("Arm", "not closed", True),), True),
        ),
    ],
)
def test_what_a_response_lacks_is_empty(response, reading):
    assert parse(response) == reading


@pytest.mark.parametrize(
    "pattern", ["<component name=", "<component name='a'><analysis>", "<overview>", "<", "<answer> ", "<analysis "]
)  # fmt: skip
def test_a_hostile_response_takes_no_time_and_stays_small(pattern):
    began = time.perf_counter()
    reading = parse(pattern * (1_000_000 // len(pattern)))
    assert time.perf_counter() - began < 2  # it takes some 30 ms; a quadratic pattern takes minutes
    assert len(reading.components) <= 64
    assert sum(len(part.name) + len(part.analysis) for part in reading.components) < 70_000


def test_the_score_is_the_share_of_readable_responses_without_anomaly():
    no, yes = "<answer>No</answer>", RESPONSE
    assert score([no, no, yes, "unreadable"]) == pytest.approx(2 / 3)
    assert score(["unreadable"]) == score([]) == 0


def test_failures_are_ranked_last_and_a_ranking_survives_the_wire():
    clips = [Judged(1, 0.0, (), "no clip"), Judged(3, 0.5, ("a",)), Judged(2, 0.5, ("b",)), Judged(4, 0.0, ())]  # fmt: skip
    ranking = ranked(clips)
    assert [clip.seed for clip in ranking] == [2, 3, 4, 1]
    assert from_json(to_json(ranking)) == ranking
