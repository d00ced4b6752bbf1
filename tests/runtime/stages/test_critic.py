# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_runtime.frames import encode_mp4
from predict2_runtime.stages.critic import INSTRUCTION, Critic
from predict2_spec.critic import parse
from predict2_spec.errors import InvalidRequestError

CLIP = np.zeros((13, 60, 80, 3), np.uint8)
MP4 = np.frombuffer(encode_mp4(CLIP, 16), np.uint8)
NO, YES = "<answer>No</answer>", "<answer>Yes</answer>"


@pytest.fixture
def judge(call_reasoner, chat_server):
    """A critic whose reasoner gives some answers, and the requests it makes."""

    def connect(answer):
        server = chat_server(answer)
        return Critic(call_reasoner({"model": "reason", "url": server.url})), server.requests

    return connect


def test_the_score_is_the_share_of_trials_that_find_nothing(judge):
    stage, _ = judge([NO, YES, NO, "?", NO])
    assert stage({"video": MP4}) == {"responses": [NO, YES, NO, "?", NO], "score": 0.75}


def test_the_reasoner_is_asked_as_the_original_asks_it(judge):
    stage, requests = judge(NO)
    stage({"video": MP4, "seed": np.array([9]), "num_trials": np.array([3])})
    (body,) = (request.body for request in requests)
    system, user = body.pop("messages")
    assert body == {
        "model": "reason",
        "n": 3,
        "seed": 9,
        "max_tokens": 4096,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 50,
        "repetition_penalty": 1.05,
    }
    assert system["content"] == INSTRUCTION
    line, *pictures, question = user["content"]
    assert len(pictures) == 12  # 13 frames at 16 a second, in whole pairs
    assert "14.8 per second" in line["text"]  # 12 frames in the time of 13
    assert question["text"].endswith("?")


def test_five_trials_are_the_default(judge):
    stage, _ = judge(NO)
    assert len(stage({"video": MP4})["responses"]) == 5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"num_trials": np.array([0])}, r"num_trials \[0\] must be one number from 1 to 16"),
        ({"num_trials": np.array([17])}, "num_trials"),
        ({"num_trials": np.array([1, 2])}, "num_trials"),
        ({"seed": np.array([-1])}, "seed"),
        ({"seed": np.array([2**32])}, "seed"),
        ({"video": MP4[:50]}, "can't be read as an mp4"),
    ],
)
def test_what_cannot_be_judged_is_refused(judge, inputs, message):
    stage, requests = judge(NO)
    with pytest.raises(InvalidRequestError, match=message):
        stage({"video": MP4} | inputs)
    assert not requests


def test_the_form_asked_for_is_the_form_that_is_read():
    form = INSTRUCTION[INSTRUCTION.index("<think>") :].replace("Yes/No", "No")
    reading = parse(form)
    assert reading.overview
    assert [(part.name, part.anomaly) for part in reading.components] == [("Name of the part", False)]  # fmt: skip
    assert reading.anomaly is False
    assert INSTRUCTION.isascii()


def test_a_model_in_this_process_judges_too(call_reasoner, tiny_reasoner, monkeypatch):
    stage = Critic(call_reasoner({"model": str(tiny_reasoner), "timeout_s": 60}))
    monkeypatch.setattr("predict2_runtime.stages.critic.MAX_NEW_TOKENS", 8)
    outputs = stage({"video": MP4, "num_trials": np.array([2])})
    assert len(outputs["responses"]) == 2
    assert outputs["score"] == 0  # nothing random can be read as a verdict
