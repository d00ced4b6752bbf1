# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime import drain
from predict2_runtime.drain import count_running, in_progress, stop_taking
from predict2_spec.errors import ServerUnavailableError


def test_requests_in_progress_are_counted(tmp_path):
    with in_progress(tmp_path), in_progress(tmp_path):
        assert count_running(tmp_path) == 2
    assert count_running(tmp_path) == 0


def test_a_request_that_fails_is_no_longer_in_progress(tmp_path):
    with pytest.raises(ZeroDivisionError), in_progress(tmp_path):
        raise ZeroDivisionError
    assert count_running(tmp_path) == 0


def test_a_server_that_stops_lets_the_running_finish_and_refuses_the_next(tmp_path):
    with in_progress(tmp_path):
        stop_taking(tmp_path)
        assert count_running(tmp_path) == 1
        with pytest.raises(
            ServerUnavailableError, match="the server is stopping; send the request"
        ):
            in_progress(tmp_path).__enter__()
    assert count_running(tmp_path) == 0


def test_a_request_that_begins_while_the_server_stops_is_counted_or_refused(tmp_path, monkeypatch):
    counted = []

    def stopping(folder):
        counted.append(count_running(folder))
        return False

    monkeypatch.setattr(drain, "is_stopping", stopping)
    with in_progress(tmp_path):
        assert counted == [1]  # it is looked for after the mark is there


def test_a_request_runs_where_no_mark_can_be_made(tmp_path):
    with in_progress(tmp_path / "gone"):
        pass


def test_without_a_folder_nothing_is_asked():
    with in_progress(None):
        pass
