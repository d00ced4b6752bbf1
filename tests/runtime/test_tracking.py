# SPDX-License-Identifier: Apache-2.0
import os
import time

import numpy as np
import pytest

from predict2_runtime.following import make_state
from predict2_runtime.policy import Policy
from predict2_runtime.tracking import tracking_handler
from predict2_spec.errors import (
    InvalidRequestError,
    RequestCancelledError,
    ServerUnavailableError,
)
from predict2_spec.tracking import RequestState

ID = "request-0001"
RESULT = {"media": np.arange(5, dtype=np.uint8), "metadata": "{}", "ranking": "[]"}


@pytest.fixture
def state(tmp_path):
    return make_state(tmp_path, Policy())


@pytest.fixture
def track(state):
    """track(action): what the model answers."""
    handler = tracking_handler(state)

    def track(*action):
        asked = {"request_id": [ID], **({"action": list(action)} if action else {})}
        outputs = handler(asked, None)
        return RequestState.from_json(outputs.pop("state")).state, sorted(outputs)

    return track


def test_a_look_tells_the_state_and_nothing_more(track, state):
    assert track() == track("look") == ("unknown", [])
    record = state.begin(ID, "content", None)
    assert track() == ("running", [])
    record.keep(RESULT)
    assert track() == ("done", [])


def test_a_fetch_brings_the_result(track, state):
    assert track("fetch") == ("unknown", [])
    state.begin(ID, "content", None).keep(RESULT)
    assert track("fetch") == ("done", ["media", "metadata"])


@pytest.mark.parametrize(("action", "renews"), [("renew", True), ("fetch", True), ("look", False)])
def test_who_waits_renews(track, state, action, renews):
    record = state.begin(ID, "content", 5)
    claim = state.running(record.name) / "claim"
    os.utime(claim, ns=(0, 0))
    track(action)
    assert (claim.stat().st_mtime_ns > 0) == renews


def test_a_cancelled_request_stops(track, state):
    record = state.begin(ID, "content", None)
    assert track("cancel") == ("running", [])
    with pytest.raises(RequestCancelledError):
        record.check()


def test_what_is_too_old_is_removed_when_somebody_asks(track, state):
    state.begin("another-request", "content", None).keep(RESULT)
    (kept,) = (state.folder / "ended").iterdir()
    then = time.time() - 3601
    os.utime(kept, (then, then))
    track()
    assert not kept.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"request_id": ["no"]}, "request id 'no' must be 8 to 128"),
        ({"request_id": [ID, ID]}, "request_id holds 2 values; give one"),
        ({"request_id": []}, "request_id holds 0 values"),
        ({"request_id": [ID], "action": ["stop"]}, "action 'stop' is unknown; choose one of look,"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_value(state, arrays, message):
    with pytest.raises(InvalidRequestError, match=message):
        tracking_handler(state)(arrays, None)


def test_a_server_that_follows_nothing_says_so():
    with pytest.raises(ServerUnavailableError, match="follows no requests"):
        tracking_handler(None)({"request_id": [ID]}, None)


def test_it_answers_though_nothing_can_be_tidied_away(track, state, tmp_path):
    (tmp_path / "cancelled").rmdir()
    assert track() == ("unknown", [])
