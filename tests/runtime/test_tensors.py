# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_runtime.tensors import from_tensors, parse_request, to_tensors
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import MAX_TEXT_BYTES
from predict2_spec.presets import TASKS
from predict2_spec.requests import Text2ImageRequest, Video2WorldRequest
from predict2_spec.tensors import MODELS


def test_arrays_survive_the_way_to_triton_and_back(pb_utils):
    model = MODELS["video2world"]
    values = {
        "prompt": "ein Bär",
        "seed": 7,
        "guidance": 0.1,
        "return_frames": True,
        "image": [1, 2],
    }
    back = from_tensors(model.inputs, to_tensors(pb_utils, model.inputs, values))
    assert back["prompt"] == ["ein Bär"]
    assert back["seed"].dtype == np.int64
    assert back["guidance"].tolist() == [0.1]
    assert back["image"].tolist() == [1, 2]
    assert sorted(back) == sorted(values)


def test_a_text_that_no_limit_allows_is_refused_before_anything_reads_it(pb_utils):
    model = MODELS["text2image"]
    received = to_tensors(pb_utils, model.inputs, {"prompt": "x" * (MAX_TEXT_BYTES + 1)})
    with pytest.raises(InvalidRequestError, match="prompt has 1048577 bytes; no text may"):
        from_tensors(model.inputs, received)


def test_a_request_is_parsed_with_defaults_for_what_is_left_out():
    request = parse_request("text2image", {"prompt": ["a ball"], "seed": np.array([3])})
    assert request == Text2ImageRequest(prompt="a ball", seed=3)
    assert type(request.seed) is int


def test_media_arrive_as_bytes():
    request = parse_request("video2world", {"prompt": ["a"], "image": np.uint8([1, 2, 255])})
    assert request == Video2WorldRequest(prompt="a", image=b"\x01\x02\xff")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "prompt is missing"),
        ({"prompt": ["a", "b"]}, "prompt holds 2 values; give one"),
        ({"prompt": ["a"], "image": np.uint8([1])}, "text2image takes no image; leave it out"),
        ({"prompt": [""]}, "prompt is empty"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(arrays, message):
    with pytest.raises(InvalidRequestError, match=message):
        parse_request("text2image", arrays)


def test_every_task_model_can_be_parsed():
    for task in TASKS:
        arrays = {"prompt": ["a"], **({"image": np.uint8([1])} if task == "video2world" else {})}
        assert parse_request(task, arrays).task == task
