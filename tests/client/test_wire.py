# SPDX-License-Identifier: Apache-2.0
"""Requests as Triton would read them, results and errors as a caller sees them."""

import dataclasses

import numpy as np
import pytest
from tritonclient.utils import deserialize_bytes_tensor, triton_to_np_dtype

from predict2_client import wire
from predict2_spec.critic import MAX_TRIALS, Judged, to_json
from predict2_spec.errors import (
    InvalidRequestError,
    ServerError,
)
from predict2_spec.requests import (
    REQUESTS,
    Text2ImageRequest,
    Text2WorldRequest,
    Video2WorldRequest,
)
from predict2_spec.results import Event
from predict2_spec.tensors import MODELS

URL = "example:8001"
EVERYTHING = {
    "text2image": Text2ImageRequest(
        prompt="ein Ball, größer",
        negative_prompt="blur",
        seed=2**32 - 1,
        num_steps=7,
        solver="euler",
        aspect_ratio="4:3",
        width=64,
        height=48,
        model_size="2B",
        resolution="720",
        fps=16,
        return_frames=True,
        disable_guardrail=True,
        guidance=0.1,
        output_format="png",
    ),
    "video2world": Video2WorldRequest(
        prompt="on", video=bytes(range(256)), num_conditional_frames=5, num_frames=9
    ),
    "text2world": Text2WorldRequest(
        prompt="on", guidance=0.0, image_guidance=2.5, disable_prompt_refiner=True
    ),
}


def decode(message):
    """name -> value, read by the message's own dtypes and shapes."""
    values = {}
    for tensor, content in zip(message.inputs, message.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            array = deserialize_bytes_tensor(content)
        else:
            array = np.frombuffer(content, triton_to_np_dtype(tensor.datatype))
        array = array.reshape(tuple(tensor.shape))
        if tensor.datatype == "UINT8":
            values[tensor.name] = array.tobytes()
        elif tensor.datatype == "BYTES":
            values[tensor.name] = array.item().decode()
        else:
            values[tensor.name] = array.item()
    return values


@pytest.mark.parametrize("task", EVERYTHING)
def test_request_survives_the_way_to_its_task_model(task):
    request = EVERYTHING[task]
    message = wire.infer_request(request, task)
    assert message.model_name == task
    assert REQUESTS[task](**decode(message)) == request


@pytest.mark.parametrize("task", EVERYTHING)
def test_request_survives_the_way_to_generate_with_its_task(task):
    values = decode(wire.infer_request(EVERYTHING[task], "generate"))
    assert values.pop("task") == task
    assert REQUESTS[task](**values) == EVERYTHING[task]


@pytest.mark.parametrize("task", EVERYTHING)
@pytest.mark.parametrize("model", ["own", "generate"])
def test_tensors_are_those_of_the_model(task, model):
    model = task if model == "own" else model
    known = {t.name: t for t in MODELS[model].inputs}
    for tensor in wire.infer_request(EVERYTHING[task], model).inputs:
        expected = known[tensor.name]
        assert tensor.datatype == expected.dtype
        assert len(tensor.shape) == len(expected.dims)


def test_best_of_n_is_a_video2world_request_and_two_numbers():
    message = wire.best_of_n_request(EVERYTHING["video2world"], 4, 3)
    assert message.model_name == "best_of_n"
    values = decode(message)
    assert (values.pop("num_generations"), values.pop("num_critic_trials")) == (4, 3)
    assert Video2WorldRequest(**values) == EVERYTHING["video2world"]
    known = {t.name: t.dtype for t in MODELS["best_of_n"].inputs}
    assert all(known[tensor.name] == tensor.datatype for tensor in message.inputs)


def test_question_to_the_critic_carries_clip_trials_and_seed():
    message = wire.judge_request(b"mp4", 3, 2**32 - 1)
    assert message.model_name == "critic"
    assert decode(message) == {"video": b"mp4", "num_trials": 3, "seed": 2**32 - 1}
    dtypes = {t.name: t.dtype for t in MODELS["critic"].inputs}
    assert {t.name: t.datatype for t in message.inputs} == dtypes


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ((b"", 1, 0), "the clip has 0 bytes"),
        ((b"mp4", 0, 0), f"num_trials 0 must be between 1 and {MAX_TRIALS}"),
        ((b"mp4", MAX_TRIALS + 1, 0), "num_trials"),
        ((b"mp4", 1, -1), "seed -1 must be between 0"),
        ((b"mp4", 1, 2**32), "seed"),
    ],
)
def test_question_outside_its_limits_is_refused(question, reason):
    with pytest.raises(InvalidRequestError, match=reason):
        wire.judge_request(*question)


def test_judgement_is_read(respond):
    judgement = wire.read_judgement(respond.judgement(("größer", "", "<answer>No</answer>"), 0.5))
    assert judgement == wire.Judgement(("größer", "", "<answer>No</answer>"), 0.5)


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_score_that_is_none_is_a_server_error(respond, score):
    with pytest.raises(ServerError, match="score"):
        wire.read_judgement(respond.judgement(score=score))


def test_answer_without_a_judgement_or_a_state_names_the_versions(respond):
    for read in (wire.read_judgement, wire.read_tracking):
        with pytest.raises(ServerError, match="different versions"):
            read(respond.result())


def test_ranking_beside_a_result_is_read(respond):
    ranking = (Judged(4, 0.5, ("a", "b")), Judged(3, 0.0, (), "no"))
    response = respond.result()
    text = to_json(ranking).encode()
    response.outputs.add(name="ranking", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
    result = wire.read_response(response)
    assert (result.media, result.ranking) == (b"picture", ranking)


def test_unset_fields_stay_at_home():
    request = Video2WorldRequest(prompt="on", image=b"\x89PNG")
    sent = decode(wire.infer_request(request, "video2world"))
    assert not {"video", "width", "height", "model_size", "resolution", "fps"} & set(sent)
    assert sent["image"] == b"\x89PNG"


def test_empty_negative_prompt_of_a_clip_is_sent_because_the_default_is_not_empty():
    request = Text2WorldRequest(prompt="on", negative_prompt="")
    assert decode(wire.infer_request(request, "text2world"))["negative_prompt"] == ""


def test_guidance_keeps_all_its_digits():
    request = Text2ImageRequest(prompt="on", guidance=0.1)
    assert decode(wire.infer_request(request, "text2image"))["guidance"] == 0.1


def test_number_that_fits_no_tensor_is_refused_by_name():
    request = Text2ImageRequest(prompt="on", width=10**30, height=16)
    with pytest.raises(InvalidRequestError, match="width"):
        wire.infer_request(request, "text2image")


def test_result_is_read_with_its_frames(respond):
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    result = wire.read_response(respond.result(b"\xff\xd8", frames=frames))
    assert result.media == b"\xff\xd8"
    assert result.metadata == respond.metadata
    np.testing.assert_array_equal(result.frames, frames)


def test_result_without_frames_has_none(respond):
    assert wire.read_response(respond.result()).frames is None


def test_event_is_read(respond):
    assert wire.read_response(respond.event("decode", 2, 3)) == Event("decode", 2, 3, 0.5)


def test_metadata_without_a_field_it_must_have_names_the_versions(respond):
    response = respond.result()
    response.raw_output_contents[1] = response.raw_output_contents[1].replace(b'"seed"', b'"need"')
    with pytest.raises(ServerError, match="different versions"):
        wire.read_response(response)


def test_response_with_neither_event_nor_result_is_a_server_error(respond):
    response = respond.result()
    del response.outputs[:], response.raw_output_contents[:]
    with pytest.raises(ServerError, match="no media"):
        wire.read_response(response)


def test_every_field_of_every_request_has_a_tensor():
    for request in EVERYTHING.values():
        for field in dataclasses.fields(request):
            assert field.name in {t.name for t in MODELS[request.task].inputs}
