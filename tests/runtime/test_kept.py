# SPDX-License-Identifier: Apache-2.0
import multiprocessing
import os
import time

import numpy as np
import pytest

from predict2_runtime import kept as kept_module
from predict2_runtime.kept import Kept, Shelf
from predict2_spec.results import Failure

HOUR = 3600


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path, 10_000, HOUR)


def result(size=100, value=1):
    media = np.full(size, value, np.uint8)
    return Kept("digest", True, None, {"media": media, "metadata": '{"prompt": "é"}'}, whole=True)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def age(folder, name, seconds):
    then = time.time() - seconds
    os.utime(folder / name, (then, then))


def test_what_is_put_is_found_with_and_without_its_outputs(shelf):
    shelf.put("a", result())
    found = shelf.find("a", with_outputs=True)
    assert (found.digest, found.done, found.failure, found.whole) == ("digest", True, None, True)
    assert found.outputs["media"].tolist() == [1] * 100
    assert found.outputs["metadata"] == '{"prompt": "é"}'
    assert HOUR - 60 < found.rest_s <= HOUR
    assert shelf.find("a", with_outputs=False).outputs == {}


def test_a_failure_is_found_whole(shelf):
    failure = Failure("INVALID_ARGUMENT", "no\nlines — é", {"safe": False})
    shelf.put("a", Kept("digest", False, failure))
    found = shelf.find("a", with_outputs=True)
    assert (found.done, found.failure, found.outputs) == (False, failure, {})


def test_the_last_that_is_put_under_a_name_is_found(shelf):
    shelf.put("a", result(100, 1))
    shelf.put("a", result(50, 2))
    assert shelf.find("a", with_outputs=True).outputs["media"].tolist() == [2] * 50


def test_nothing_is_found_where_nothing_is(shelf):
    assert shelf.find("a", with_outputs=True) is None
    shelf.remove("a")


def test_what_is_too_old_is_not_found_and_is_removed_by_the_next(shelf, tmp_path):
    shelf.put("old", result())
    age(tmp_path, "old", HOUR + 1)
    assert shelf.find("old", with_outputs=True) is None
    shelf.put("new", result())
    assert names(tmp_path) == ["new"]


def test_the_oldest_make_room(shelf, tmp_path):
    for number in range(5):
        shelf.put(str(number), result(2000))
        age(tmp_path, str(number), 100 - number)
    assert names(tmp_path) == [
        "1",
        "2",
        "3",
        "4",
    ]  # five times 2000 bytes and their heads are too much
    shelf.put("large", result(5000))
    assert names(tmp_path) == ["3", "4", "large"]


def test_no_more_files_than_can_be_looked_through(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_module, "MAX_FILES", 3)
    for number in range(6):
        shelf.put(str(number), result(1))
        age(tmp_path, str(number), 100 - number)
    assert names(tmp_path) == ["3", "4", "5"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"",
        lambda data: b"\xff\xfe\n" + data,
        lambda data: b"[]\n",
        lambda data: b'{"sizes": []}\n',
        lambda data: (
            b'{"sizes": [], "failure": {"x": 1}, "digest": "", "done": true, "whole": true}\n'
        ),
    ],
)
def test_a_damaged_file_counts_as_none(shelf, tmp_path, damage, caplog):
    shelf.put("a", result())
    path = tmp_path / "a"
    path.write_bytes(damage(path.read_bytes()))
    assert shelf.find("a", with_outputs=True) is None
    assert "can't be read" in caplog.text


def test_a_full_disk_leaves_what_was_there_and_no_scrap(shelf, tmp_path, full_disk):
    shelf.put("a", result(100))
    with full_disk(1000), pytest.raises(OSError, match="too large"):
        shelf.put("a", result(5000))
    assert names(tmp_path) == ["a"]
    assert shelf.find("a", with_outputs=True).outputs["media"].size == 100


def test_parts_that_a_killed_process_left_are_removed_and_nothing_else(shelf, tmp_path):
    shelf.put("a", result())
    (tmp_path / ".part-1").write_bytes(b"x")
    shelf.make_room()
    assert names(tmp_path) == [".part-1", "a"]  # it could be another's that is being written
    shelf.remove_parts()
    assert names(tmp_path) == ["a"]


def _write_and_read(folder, number):
    shelf, own = Shelf(folder, 10_000, HOUR), np.full(3000, number, np.uint8)
    for _ in range(100):
        shelf.put("shared", Kept("digest", True, None, {"media": own}, whole=True))
        shelf.put(str(number), Kept("digest", True, None, {"media": own}, whole=True))
        for name in ("shared", "0", "1", "2", "3"):
            found = shelf.find(name, with_outputs=True)
            if found:  # others make room
                media = found.outputs["media"]
                assert media.size == 3000
                assert (media == media[0]).all()


def test_processes_that_write_at_once_never_show_a_mixture(tmp_path, caplog):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_and_read, args=(tmp_path, k)) for k in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert not list(tmp_path.glob(".part-*"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
