# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest

from predict2_runtime.frames import encode_mp4
from predict2_runtime.stages.prompt_refiner import INSTRUCTION, PromptRefiner
from predict2_spec.errors import InvalidRequestError, ServerError, ServerUnavailableError
from predict2_spec.limits import LIMITS

PICTURE = np.zeros((1, 60, 80, 3), np.uint8)
CLIP = np.zeros((32, 60, 80, 3), np.uint8)
MP4 = np.frombuffer(encode_mp4(CLIP, 16), np.uint8)


@pytest.fixture
def refine(call_reasoner, chat_server):
    """A refiner whose reasoner answers with a text, and the requests it makes."""

    def connect(answer):
        server = chat_server(answer)
        return PromptRefiner(call_reasoner({"model": "reason", "url": server.url})), server.requests

    return connect


def test_a_prompt_is_rewritten_on_one_line_of_plain_ascii(refine):
    stage, _ = refine("\n A robot\tpours  “tea”.\n\nSlowly\x07. \n")
    assert stage({"prompt": ["robot, tea"]}) == {"refined_prompt": 'A robot pours "tea". Slowly.'}


def test_the_reasoner_is_asked_as_the_original_asks_it(refine):
    stage, requests = refine("A robot.")
    stage({"prompt": ["a robot"], "frames": PICTURE})
    (body,) = (request.body for request in requests)
    system, user = body["messages"]
    assert system["content"] == INSTRUCTION
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]
    assert "a robot" in user["content"][0]["text"]
    settings = {name: body[name] for name in ("max_tokens", "temperature", "repetition_penalty")}
    assert settings == {"max_tokens": 512, "temperature": 0, "repetition_penalty": 1.05}


def test_a_clip_is_looked_at_twice_a_second(refine):
    stage, requests = refine("A robot.")
    stage({"prompt": ["a robot"], "video": MP4})
    _, line, *pictures = requests[0].body["messages"][1]["content"]
    assert len(pictures) == 4  # of 2 s
    assert "4 pictures" in line["text"]
    assert "2 per second" in line["text"]


def test_an_empty_prompt_is_refined_from_what_there_is_to_see(refine):
    stage, _ = refine("A robot.")
    assert stage({"prompt": [""], "frames": PICTURE}) == {"refined_prompt": "A robot."}


def test_a_reasoner_that_goes_on_and_on_is_cut_off(refine):
    stage, _ = refine("word " * LIMITS.prompt_bytes)
    assert len(stage({"prompt": ["a robot"]})["refined_prompt"].encode()) <= LIMITS.prompt_bytes


@pytest.mark.parametrize("answer", ["", " \n\t", "机器人"])
def test_a_reasoner_that_writes_nothing_has_failed(refine, answer):
    stage, _ = refine(answer)
    with pytest.raises(ServerError, match="wrote nothing for this prompt"):
        stage({"prompt": ["a robot"]})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"prompt": ["a" * (LIMITS.prompt_bytes + 1)]}, "the limit is 16384"),
        ({"prompt": ["a", "b"]}, "holds 2 values"),
        ({"prompt": ["a"], "frames": PICTURE, "video": MP4}, "both given"),
        ({"prompt": ["a"], "frames": CLIP}, "32 frames were given"),
        ({"prompt": ["a"], "video": MP4[:100]}, "can't be read as an mp4"),
    ],
)
def test_what_cannot_be_refined_is_refused(refine, inputs, message):
    stage, requests = refine("A robot.")
    with pytest.raises(InvalidRequestError, match=message):
        stage(inputs)
    assert not requests


def test_a_reasoner_that_is_gone_is_the_servers_trouble(call_reasoner):
    stage = PromptRefiner(call_reasoner({"model": "reason", "url": "http://127.0.0.1:9/v1"}))
    with pytest.raises(ServerUnavailableError, match="can't be reached"):
        stage({"prompt": ["a robot"]})


def test_a_model_in_this_process_refines_too(call_reasoner, tiny_reasoner, monkeypatch):
    monkeypatch.setattr("predict2_runtime.stages.prompt_refiner.MAX_NEW_TOKENS", 16)
    stage = PromptRefiner(call_reasoner({"model": str(tiny_reasoner), "timeout_s": 60}))
    refined = stage({"prompt": ["a robot"], "video": MP4})["refined_prompt"]
    assert refined.isascii()
    assert refined.isprintable()


def test_the_worked_examples_keep_to_the_length_they_ask_for():
    examples = re.findall(r"^Description: (.*)$", INSTRUCTION, re.MULTILINE)
    assert len(examples) == 3
    assert all(80 <= len(example.split()) <= 100 for example in examples)
    assert INSTRUCTION.isascii()
