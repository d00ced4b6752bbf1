# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from predict2_runtime.outcomes import Outcome
from predict2_runtime.serve import serve, serve_stage, serve_stream
from predict2_spec.errors import (
    BlockedError,
    EngineMismatchError,
    InvalidRequestError,
    RequestCancelledError,
    RequestExpiredError,
    ServerUnavailableError,
    VerificationError,
)
from predict2_spec.results import Event, Failure
from predict2_spec.tensors import GENERATE, TEXT_ENCODER


def text(value):
    return np.array([value], dtype=np.object_)


def asked(pb_utils, **options):
    """A request that `generate` takes."""
    return pb_utils.Request(task=text(b"text2image"), prompt=text(b"a"), **options)


def encode(inputs):
    if inputs["prompt"] == ["bad"]:
        raise InvalidRequestError("prompt bad is bad; say good")
    if inputs["prompt"] == ["bug"]:
        raise ZeroDivisionError
    return {"prompt_embeds": np.full((1, 2, 3), len(inputs["prompt"][0]), np.float32)}


def test_one_bad_request_does_not_fail_its_neighbours(pb_utils):
    prompts = (b"four", b"bad", b"bug", b"\xff\xfe", b"five5")
    requests = [pb_utils.Request(prompt=text(p)) for p in prompts]
    responses = serve_stage(pb_utils, TEXT_ENCODER, requests, encode)
    values = [r.outputs["prompt_embeds"][0, 0, 0] if r.error is None else None for r in responses]
    assert values == [4, None, None, None, 5]
    assert responses[1].error.message() == "prompt bad is bad; say good"
    assert responses[1].error.code() == pb_utils.TritonError.INVALID_ARG
    assert "not valid UTF-8" in responses[3].error.message()


def test_a_defect_is_answered_without_its_insides_and_logged_with_them(pb_utils, caplog):
    (response,) = serve_stage(
        pb_utils, TEXT_ENCODER, [pb_utils.Request(prompt=text(b"bug"))], encode
    )
    assert response.error.code() == pb_utils.TritonError.INTERNAL
    assert (
        response.error.message() == "text_encoder failed on this request; the server's log says why"
    )
    assert "ZeroDivisionError" in caplog.text


def test_a_defect_is_logged_without_an_id_that_nobody_checked(pb_utils, caplog):
    request = pb_utils.Request(request_id="\x1b[2J" * 1000, prompt=text(b"bug"))
    serve_stage(pb_utils, TEXT_ENCODER, [request], encode)
    assert "text_encoder: a request failed" in caplog.text
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequestError("x"), "INVALID_ARG"),
        (ServerUnavailableError("x"), "UNAVAILABLE"),
        (EngineMismatchError("x"), "UNAVAILABLE"),
        (VerificationError("x"), "INTERNAL"),
    ],
)
def test_errors_become_the_fitting_status(pb_utils, error, code):
    def fail(inputs, progress):
        raise error

    (response,) = serve(pb_utils, GENERATE, [asked(pb_utils)], fail)
    assert response.error.code() == getattr(pb_utils.TritonError, code)


def test_a_cancelled_request_stops_at_its_next_step(pb_utils):
    steps = []

    def work(inputs, progress):
        for step in range(5):
            steps.append(step)
            progress.done("denoise", step + 1, 5)

    (response,) = serve(pb_utils, GENERATE, [asked(pb_utils, cancelled=True)], work)
    assert steps == [0]
    assert response.error.code() == pb_utils.TritonError.CANCELLED


def test_a_stream_sends_events_as_they_happen_and_the_result_last(pb_utils):
    request = asked(pb_utils)

    def work(inputs, progress):
        progress.done("first")
        assert len(request.sent) == 1  # already out, not kept until the end
        progress.done("second", 2, 3)
        return {"media": np.zeros(3, np.uint8), "metadata": "{}", "frames": None}

    serve_stream(pb_utils, GENERATE, [request], work)
    *events, (result, flags) = request.sent
    parsed = [Event.from_json(r.outputs["event"][0].decode()) for r, f in events if f == 0]
    assert [(e.stage, e.step, e.of) for e in parsed] == [("first", 1, 1), ("second", 2, 3)]
    assert sorted(result.outputs) == ["media", "metadata"]
    assert flags == pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


def test_a_stream_that_fails_is_closed_too(pb_utils):
    request = asked(pb_utils)

    def fail(inputs, progress):
        raise InvalidRequestError("no")

    serve_stream(pb_utils, GENERATE, [request], fail)
    ((response, flags),) = request.sent
    assert flags == 1
    assert Failure.from_json(response.outputs["error"][0].decode()) == Failure(
        "INVALID_ARGUMENT", "no"
    )


def test_a_missing_input_is_named(pb_utils):
    (response,) = serve_stage(pb_utils, TEXT_ENCODER, [pb_utils.Request()], encode)
    assert response.error.message() == "prompt is missing; text_encoder can't do without it"
    assert response.error.code() == pb_utils.TritonError.INVALID_ARG


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "ok"),
        (InvalidRequestError("x"), "refused"),
        (BlockedError("x"), "blocked"),
        (RequestCancelledError("x"), "cancelled"),
        (RequestExpiredError("x"), "expired"),
        (ServerUnavailableError("x"), "unavailable"),
        (EngineMismatchError("x"), "unavailable"),
        (VerificationError("x"), "failed"),
        (ZeroDivisionError(), "failed"),
    ],
)
def test_how_each_request_ended_is_told_once_and_before_the_answer(pb_utils, error, status):
    def work(inputs, progress):
        progress.done("check_prompt")
        progress.done("denoise_image", 1, 2)
        beside = progress.beside()
        beside.done("denoise_image", 1, 2)
        if error:
            raise error
        return {"metadata": "{}"}

    def observe(outcome):
        told.append((outcome, len(request.sent)))

    told, request = [], asked(pb_utils)
    serve(pb_utils, GENERATE, [request], work, observe=observe)
    serve_stream(pb_utils, GENERATE, [request], work, observe=observe)
    assert [(o.model, o.status, o.steps, sent) for o, sent in told] == [
        ("generate", status, 2, 0),
        ("generate", status, 2, 3),  # three events; the answer comes after
    ]
    assert set(told[0][0].seconds) == {"check_prompt", "denoise_image", "total"}


def test_a_result_is_answered_though_it_could_not_be_counted(pb_utils, caplog):
    def observe(outcome):
        raise OSError("no metrics")

    requests = [asked(pb_utils), asked(pb_utils)]
    answers = serve(pb_utils, GENERATE, requests, lambda i, p: {"metadata": "{}"}, observe=observe)
    assert [list(answer.outputs) for answer in answers] == [["metadata"]] * 2
    assert "no metrics" in caplog.text


def test_a_request_that_is_refused_before_the_work_is_told_too(pb_utils):
    told = []
    serve(pb_utils, GENERATE, [pb_utils.Request()], None, observe=told.append)
    assert told == [Outcome("generate", "refused", {"total": 0.0}, 0)]
