# SPDX-License-Identifier: Apache-2.0
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from predict2_runtime.drain import RUN_FOLDER_VARIABLE
from predict2_runtime.following import Record, make_state, open_state, taken_over
from predict2_runtime.kept import Kept, Shelf
from predict2_runtime.policy import Policy
from predict2_spec.admission import IS_RUNNING
from predict2_spec.errors import (
    InvalidRequestError,
    RequestCancelledError,
    RequestExpiredError,
    ServerUnavailableError,
)
from predict2_spec.results import Event, Failure
from predict2_spec.tracking import RequestState

ID, OTHER = "../../etc/passwd", "a-request"
EVENT = Event("denoise_image", 3, 36, 1.5, 16.5)
MEDIA = np.arange(100, dtype=np.uint8)
RESULT = {"media": MEDIA, "metadata": "{}", "frames": None}


@pytest.fixture
def policy():
    return Policy(kept_bytes=10_000, kept_seconds=60)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


@pytest.fixture
def state(folder, policy):
    return make_state(folder, policy)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def begin(state, request_id=ID, digest="content", lease_s=None):
    record = state.begin(request_id, digest, lease_s)
    assert isinstance(record, Record)
    return record


def test_a_request_is_followed_from_its_beginning_to_its_result(state):
    assert state.look(ID) == (RequestState("unknown"), {})
    record = begin(state)
    assert state.look(ID) == (RequestState("running"), {})
    record.note(EVENT)
    assert state.look(ID) == (RequestState("running", EVENT), {})
    record.keep(RESULT)
    done, outputs = state.look(ID, fetch=True)
    assert (done.state, done.event, done.failure, outputs["metadata"]) == ("done", None, None, "{}")
    assert outputs["media"].tolist() == MEDIA.tolist()
    assert 50 < done.kept_s <= 60
    assert state.look(ID)[1] == {}


def test_an_event_is_read_whole_while_others_are_written(state):
    """Two clips of a best_of_n tell side by side, and somebody asks all the time."""
    record, stop = begin(state), threading.Event()
    events = [Event("x" * size, size, 150, float(size)) for size in (1, 60, 150)]

    def write(own):
        while not stop.is_set():
            for event in own:
                record.note(event)

    record.note(events[0])
    with ThreadPoolExecutor(2) as threads:
        for own in (events, events[::-1]):
            threads.submit(write, own)
        try:
            seen = {state.look(ID)[0].event for _ in range(500)}
        finally:
            stop.set()
    assert seen <= {*events, None}  # None: it was always too late
    assert len(seen - {None}) > 1


def test_a_mixture_of_two_events_is_none(state):
    record = begin(state)
    record.note(EVENT)
    file = state.running(record.name) / "event"
    file.write_bytes(file.read_bytes().replace(b'"step": 3', b'"step": 4'))
    assert state.look(ID)[0] == RequestState("running")


def test_a_failure_is_told(state):
    failure = Failure("UNAVAILABLE", "no")
    begin(state).fail(failure)
    failed, outputs = state.look(ID, fetch=True)
    assert (failed.state, failed.failure, outputs) == ("failed", failure, {})


def test_no_callers_text_is_in_a_path_and_nobody_else_can_read_them(state, folder):
    record = begin(state)
    record.note(EVENT)
    state.cancel(ID)
    begin(state, OTHER).keep(RESULT)
    found = [path for path in folder.rglob("*") if path.parent != folder]
    assert len(found) == 5  # running/NAME, its claim and event, cancelled/NAME, ended/NAME
    names = {"claim", "event", record.name}
    assert all(p.name in names or len(p.name) == 64 for p in found)
    for top in folder.iterdir():
        assert stat.S_IMODE(top.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_was_open_to_others_is_closed(folder, policy):
    (folder / "ended").mkdir(parents=True)
    (folder / "ended").chmod(0o755)
    make_state(folder, policy)
    assert stat.S_IMODE((folder / "ended").stat().st_mode) == 0o700


def test_the_same_again_while_it_runs_is_refused(state):
    record = begin(state)
    with pytest.raises(InvalidRequestError, match="is running; ask the model tracking"):
        state.begin(ID, "content", None)
    with pytest.raises(InvalidRequestError, match="other content is running; ask") as caught:
        state.begin(ID, "other content", None)
    assert IS_RUNNING not in str(caught.value)  # who waits for it would get another's result
    record.note(EVENT)  # and the one that runs hasn't noticed
    assert state.look(ID)[0].event == EVENT


def test_the_same_again_afterwards_gets_what_was_made(state):
    begin(state).keep(RESULT)
    again = state.begin(ID, "content", None)
    assert isinstance(again, Kept)
    assert again.outputs["media"].tolist() == MEDIA.tolist()
    assert state.look(ID)[0].state == "done"


def test_an_id_that_other_content_had_is_refused(state):
    begin(state).keep(RESULT)
    with pytest.raises(InvalidRequestError, match="of other content; send another id"):
        state.begin(ID, "other content", None)
    assert state.look(ID)[0].state == "done"


def test_an_id_is_let_go_where_what_was_before_cannot_be_removed(state, monkeypatch):
    def remove(self, name):
        raise PermissionError(13, "Permission denied")

    begin(state).fail(Failure("UNAVAILABLE", "no"))
    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "remove", remove)
        with pytest.raises(PermissionError):
            state.begin(ID, "content", None)
    begin(state)


def test_what_failed_begins_anew(state):
    begin(state).fail(Failure("UNAVAILABLE", "no"))
    record = begin(state)
    assert state.look(ID)[0].state == "running"
    record.keep(RESULT)
    assert state.look(ID)[0].state == "done"


def test_frames_are_not_kept_so_what_made_them_begins_anew(state):
    begin(state).keep({**RESULT, "frames": np.zeros((1, 2, 2, 3), np.uint8)})
    assert sorted(state.look(ID, fetch=True)[1]) == ["media", "metadata"]
    begin(state)


def test_one_of_many_at_once_gets_the_id(state):
    gate = threading.Barrier(8)

    def run(_):
        gate.wait()
        try:
            return isinstance(state.begin(ID, "content", None), Record)
        except InvalidRequestError:
            return False

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(run, range(8))) == 1


def test_a_running_request_stops_when_it_is_cancelled(state):
    record, other = begin(state), begin(state, OTHER)
    record.check()
    state.cancel(ID)
    with pytest.raises(RequestCancelledError, match="cancelled through tracking"):
        record.check()
    other.check()


def test_a_request_cancelled_before_it_begins_stops_at_once_and_only_then(state):
    state.cancel(ID)
    record = begin(state)
    with pytest.raises(RequestCancelledError):
        record.check()
    record.fail(Failure("CANCELLED", "x"))
    begin(state).check()


def test_what_ended_cannot_be_cancelled(state, folder):
    begin(state).keep(RESULT)
    state.cancel(ID)
    assert not list((folder / "cancelled").iterdir())


def test_a_lease_that_nobody_renews_expires(state):
    record = begin(state, lease_s=2)
    claim = state.running(record.name) / "claim"

    def wait(seconds):
        changed = claim.stat().st_mtime_ns - int(seconds * 1e9)
        os.utime(claim, ns=(changed, changed))

    wait(1.5)
    record.check()
    state.renew(ID)
    wait(1.5)
    record.check()
    wait(1)
    with pytest.raises(RequestExpiredError, match="lease of 2 s"):
        record.check()


def test_without_a_lease_nobody_needs_to_renew(state):
    record = begin(state)
    os.utime(state.running(record.name) / "claim", ns=(0, 0))
    record.check()


def test_whoever_is_unknown_can_be_renewed_and_looked_at(state, folder):
    state.renew(ID)
    assert state.look(ID, fetch=True) == (RequestState("unknown"), {})
    assert files(folder) == []


def test_a_result_above_the_limit_is_not_kept_and_that_is_told(state, folder):
    begin(state).keep({"media": np.zeros(10_001, np.uint8), "metadata": "{}"})
    done, outputs = state.look(ID, fetch=True)
    assert (done.state, done.kept_s, outputs) == ("done", 0, {})
    assert (
        "its 10003 bytes are more than the 10000 of predict2-serve --kept-bytes"
        in done.failure.message
    )
    begin(state)  # so the same id makes it anew


def test_a_full_disk_loses_the_result_and_nothing_else(state, full_disk, caplog):
    record = begin(state)
    with full_disk(1000):
        record.keep({"media": np.zeros(5000, np.uint8), "metadata": "{}"})
    done, outputs = state.look(ID, fetch=True)
    assert (done.state, done.kept_s, outputs) == ("done", 0, {})
    assert "not kept: the server's disk couldn't take it" in done.failure.message
    assert "a result of 5002 bytes wasn't kept" in caplog.text


def test_a_disk_without_any_room_forgets_the_request(state, folder, full_disk):
    record = begin(state)
    with full_disk(0):
        record.note(EVENT)
        record.check()
        record.keep(RESULT)
    assert state.look(ID)[0].state == "unknown"
    assert files(folder) == []


@pytest.fixture
def owned(policy, folder):
    """The policy of an owner who wants the folder to outlive the server."""
    return replace(policy, state=str(folder))


def test_what_a_server_left_running_has_failed_for_the_next(folder, policy, owned):
    state = make_state(folder, policy)
    begin(state).note(EVENT)
    begin(state, OTHER).keep(RESULT)
    state.cancel(ID)
    (folder / "ended" / ".part-1").touch()
    with taken_over(owned):
        lost, _ = state.look(ID)
        assert lost.state == "failed"
        assert lost.failure.message == "the server ended before the request did; send it again"
        assert state.look(OTHER)[0].state == "done"
        begin(state).check()  # it can be sent again, and isn't cancelled any more
        with pytest.raises(InvalidRequestError, match="other content"):
            state.begin(OTHER, "other content", None)
    assert not list(folder.rglob(".part-*"))


def test_two_servers_never_share_a_folder(owned):
    second = taken_over(owned)
    with (
        taken_over(owned),
        pytest.raises(ServerUnavailableError, match=r"another server .* --state"),
    ):
        second.__enter__()
    with taken_over(owned):
        pass


@pytest.mark.parametrize("name", ["running/model.py", "ended/report.pdf", "cancelled/order"])
def test_a_folder_named_by_mistake_keeps_what_is_in_it(owned, folder, name):
    own = folder / name
    own.parent.mkdir(parents=True)
    own.touch()
    with pytest.raises(ServerUnavailableError, match=rf"{own} .*--state"):
        taken_over(owned).__enter__()
    assert own.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, policy):
    (tmp_path / "file").touch()
    with pytest.raises(ServerUnavailableError, match=r"file/state .*--state"):
        make_state(tmp_path / "file" / "state", policy)


def test_old_marks_and_results_are_tidied_away(state, folder):
    begin(state).keep(RESULT)
    state.cancel(OTHER)
    for path in folder.rglob("*"):
        then = time.time() - 61
        os.utime(path, (then, then))
    state.tidy()
    assert files(folder) == []


def test_the_folder_is_the_owners_or_one_that_ends_with_the_server(tmp_path):
    environment = {RUN_FOLDER_VARIABLE: str(tmp_path)}
    assert open_state({}, Policy()) is None
    assert open_state(environment, Policy()).folder == tmp_path / "state"
    own = Policy(state=str(tmp_path / "own"), kept_bytes=7, kept_seconds=9)
    state = open_state(environment, own)
    assert (state.folder, state.ended.max_bytes, state.ended.max_seconds) == (
        tmp_path / "own",
        7,
        9,
    )
