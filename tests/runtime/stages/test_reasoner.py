# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from predict2_runtime.language import Question
from predict2_runtime.policy import LanguageModel, Policy
from predict2_runtime.stages.reasoner import MAX_TEXT_BYTES, Reasoner
from predict2_spec.errors import EngineMismatchError, InvalidRequestError, ServerUnavailableError

CLIP = np.zeros((4, 28, 56, 3), np.uint8)


@pytest.fixture
def asked():
    """A stage, and what its model is asked."""
    questions = []

    def ask(question, frames, fps):
        questions.append((question, frames, fps))
        return ["yes", "no"]

    return Reasoner(ask), questions


def question(**fields):
    return [json.dumps({"text": "What is this?"} | fields)]


def test_a_question_is_put_to_the_model_with_its_frames(asked):
    stage, questions = asked
    inputs = {"question": question(temperature=1, seed=3), "frames": CLIP, "fps": np.array([16.0])}
    assert stage(inputs) == {"responses": ["yes", "no"]}
    assert questions == [(Question("What is this?", temperature=1, seed=3), CLIP, 16.0)]


def test_frames_without_a_pace_are_pictures_and_a_pace_without_frames_is_nothing(asked):
    stage, questions = asked
    stage({"question": question(), "frames": CLIP})
    stage({"question": question(), "fps": np.array([16.0])})
    assert [(frames is None, fps) for _, frames, fps in questions] == [(False, 0), (True, 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON"),
        ("[]", "must be JSON"),
        ("null", "must be JSON"),
        ("{}", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ('{"text": 3}', "text 3 must be str"),
        ('{"text": "a", "num_responses": true}', "num_responses True must be int"),
        ('{"text": "a", "num_responses": 17}', "num_responses 17 must be between 1 and 16"),
        ('{"text": "a", "num_responses": 0}', "between 1"),
        ('{"text": "a", "max_new_tokens": 4097}', "max_new_tokens 4097 must be between 1 and 4096"),
        ('{"text": "a", "temperature": NaN}', "temperature nan must be float"),
        ('{"text": "a", "temperature": "hot"}', "temperature 'hot' must be float"),
        ('{"text": "a", "top_p": 0}', "top_p 0 must be between 0.01 and 1"),
        ('{"text": "a", "top_k": 1.5}', "top_k 1.5 must be int"),
        ('{"text": "a", "repetition_penalty": -1}', "repetition_penalty -1"),
        ('{"text": "a", "seed": -1}', "seed -1 must be between 0"),
        ('{"text": "a", "ascii_only": 1}', "ascii_only 1 must be bool"),
        ('{"text": "\\ud800"}', "text isn't Unicode"),
        (json.dumps({"text": "a" * 65537}), "text has 65537 bytes; the limit is 65536"),
        (json.dumps({"text": "a", "system": "é" * 32769}), "system has 65538 bytes"),
        ("[" * 790_529, "question has 790529 characters; the limit is 790528"),
    ],
)
def test_a_malformed_question_never_reaches_the_model(asked, text, message):
    stage, questions = asked
    with pytest.raises(InvalidRequestError, match=message):
        stage({"question": [text]})
    assert not questions


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        (CLIP[0], 1.0, r"frames uint8\[28, 56, 3\] must be"),
        (CLIP[..., :1], 1.0, "must be uint8"),
        (CLIP[:0], 1.0, "none of them 0"),
        (CLIP[:, :0], 1.0, "none of them 0"),
        (CLIP.astype(np.float32), 1.0, "frames float32"),
        (np.zeros((769, 1, 1, 3), np.uint8), 1.0, "769 frames were given; the limit is 768"),
        (np.zeros((17, 1, 1, 3), np.uint8), 0.0, "17 frames were given.*16 for pictures"),
        (np.broadcast_to(np.uint8(0), (1, 9000, 9000, 3)), 0.0, "9000 x 9000 pixels"),
        (CLIP, np.nan, "fps .* must be one number"),
        (CLIP, -1.0, "fps .* must be one number"),
        (CLIP, 1e9, "fps .* must be one number"),
    ],
)
def test_malformed_frames_never_reach_the_model(asked, frames, fps, message):
    stage, questions = asked
    with pytest.raises(InvalidRequestError, match=message):
        stage({"question": question(), "frames": frames, "fps": np.array([fps])})
    assert not questions


def test_the_longest_texts_pass_however_they_are_written(asked):
    stage, questions = asked
    longest = {
        "text": "\x01" * MAX_TEXT_BYTES,
        "system": "\x02" * MAX_TEXT_BYTES,
    }  # 6 characters each in JSON
    stage({"question": question(**longest, seed=2**32 - 1)})
    assert questions[0][0].system == longest["system"]


def test_a_server_without_a_reasoner_says_how_to_get_one():
    stage = Reasoner.open(Policy())
    with pytest.raises(ServerUnavailableError, match=r"no reasoner .* predict2-serve --reasoner"):
        stage({"question": question()})


def test_the_model_is_opened_before_the_first_question(tmp_path):
    with pytest.raises(EngineMismatchError, match="no checkpoint"):
        Reasoner.open(Policy(reasoner=LanguageModel(str(tmp_path))))


def test_a_policys_model_answers(chat_server):
    server = chat_server("a cup")
    stage = Reasoner.open(Policy(reasoner=LanguageModel("reason", url=server.url)))
    assert stage({"question": question(), "frames": CLIP}) == {"responses": ["a cup"]}
    assert len(server.requests[0].body["messages"][0]["content"]) == 5
