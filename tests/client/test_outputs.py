# SPDX-License-Identifier: Apache-2.0
"""Names of results, the JSON file beside them, and what counts as already made."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from predict2_client import outputs
from predict2_client.wire import Result
from predict2_spec.errors import InvalidRequestError
from predict2_spec.requests import Text2ImageRequest, Video2WorldRequest

REQUEST = Text2ImageRequest(prompt="ein größerer Ball", seed=3)


@pytest.fixture
def result(respond):
    return Result(b"picture", respond.metadata)


@pytest.mark.parametrize(
    ("task", "name", "path"),
    [
        ("text2image", "out/a.jpg", "out/a.jpg"),
        ("text2image", "a.PNG", "a.PNG"),
        ("text2image", "a", "a.jpg"),
        ("text2world", "a", "a.mp4"),
        ("video2world", "a.Mp4", "a.Mp4"),
    ],
)
def test_extension_is_kept_or_added(task, name, path):
    assert outputs.output_path(task, name) == Path(path)


@pytest.mark.parametrize(
    ("task", "name"), [("text2image", "a.mp4"), ("text2world", "a.jpg"), ("video2world", "a.v2")]
)
def test_wrong_extension_is_refused_with_the_right_ones(task, name):
    with pytest.raises(InvalidRequestError, match=r"must end in \.(jpg|mp4)"):
        outputs.output_path(task, name)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_output_that_names_no_file_is_refused(name):
    with pytest.raises(InvalidRequestError, match="names no file"):
        outputs.output_path("text2image", name)


def test_side_file_holds_metadata_and_request(tmp_path, result):
    outputs.save(tmp_path / "a.jpg", result, REQUEST)
    side = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (tmp_path / "a.jpg").read_bytes() == b"picture"
    assert side["preset"] == "toy"
    assert side["request"]["prompt"] == "ein größerer Ball"
    assert side["request"]["task"] == "text2image"


def test_input_file_is_recorded_by_size_and_digest():
    record = outputs.request_record(Video2WorldRequest(prompt="on", image=b"data"))
    assert record["image"] == {"size_bytes": 4, "sha256": hashlib.sha256(b"data").hexdigest()}
    assert record["video"] is None


def test_saved_result_is_recorded(tmp_path, result):
    path = tmp_path / "a.jpg"
    assert not outputs.is_recorded(path, REQUEST)
    outputs.save(path, result, REQUEST)
    assert outputs.is_recorded(path, REQUEST)


@pytest.mark.parametrize("change", [{"seed": 4}, {"prompt": "x"}, {"guidance": 3.0}])
def test_another_request_is_not_recorded(tmp_path, result, change):
    outputs.save(tmp_path / "a.jpg", result, REQUEST)
    assert not outputs.is_recorded(tmp_path / "a.jpg", replace(REQUEST, **change))


def test_other_input_file_of_the_same_name_is_not_recorded(tmp_path, result):
    request = Video2WorldRequest(prompt="on", image=b"data")
    outputs.save(tmp_path / "a.mp4", result, request)
    assert outputs.is_recorded(tmp_path / "a.mp4", request)
    assert not outputs.is_recorded(tmp_path / "a.mp4", replace(request, image=b"atad"))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"request": 1}'])
def test_damaged_side_file_vouches_for_nothing(tmp_path, result, content):
    outputs.save(tmp_path / "a.jpg", result, REQUEST)
    (tmp_path / "a.json").write_text(content)
    assert not outputs.is_recorded(tmp_path / "a.jpg", REQUEST)


def test_side_file_without_its_media_vouches_for_nothing(tmp_path, result):
    outputs.save(tmp_path / "a.jpg", result, REQUEST)
    (tmp_path / "a.jpg").unlink()
    assert not outputs.is_recorded(tmp_path / "a.jpg", REQUEST)


def test_old_side_file_does_not_vouch_for_media_written_halfway(tmp_path, result):
    path = tmp_path / "a.jpg"
    outputs.save(path, result, REQUEST)
    path.unlink()
    (path / "x").mkdir(parents=True)  # makes writing the media fail
    with pytest.raises(OSError, match=r"a\.jpg"):
        outputs.save(path, result, REQUEST)
    assert not (tmp_path / "a.json").exists()


def test_prepared_output_has_its_folder(tmp_path):
    outputs.prepare(tmp_path / "b" / "c" / "a.jpg")
    assert (tmp_path / "b" / "c").is_dir()


def test_output_under_a_file_is_refused(tmp_path):
    (tmp_path / "b").touch()
    with pytest.raises(InvalidRequestError, match="folder of output"):
        outputs.prepare(tmp_path / "b" / "a.jpg")


def test_output_that_is_a_folder_is_refused(tmp_path):
    with pytest.raises(InvalidRequestError, match="name a file"):
        outputs.prepare(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidRequestError, match="read-only"):
        outputs.prepare(tmp_path / "a.jpg")
