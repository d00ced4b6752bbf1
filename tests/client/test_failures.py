# SPDX-License-Identifier: Apache-2.0
"""What callers are told when something went wrong, and what the client thinks it can do about it."""

import dataclasses

import pytest

from predict2_client import failures
from predict2_spec.admission import PREFIXES
from predict2_spec.errors import (
    BlockedError,
    BusyError,
    InvalidRequestError,
    RequestCancelledError,
    RequestExpiredError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import Verdict, refusal
from predict2_spec.results import Failure

URL = "example:8001"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", InvalidRequestError),
        ("CANCELLED", RequestCancelledError),
        ("DEADLINE_EXCEEDED", RequestExpiredError),
        ("UNAVAILABLE", ServerUnavailableError),
        ("INTERNAL", ServerError),
        ("UNIMPLEMENTED", ServerError),
    ],
)
def test_status_becomes_its_error(code, kind):
    assert type(failures.error_from(code, "why", URL)) is kind


def test_part_that_a_server_has_not_is_told_in_its_own_words():
    error = failures.error_from("UNAVAILABLE", "no critic here; ask for one", URL, answered=True)
    assert type(error) is ServerUnavailableError
    assert str(error) == f"the server at {URL} can't do this: no critic here; ask for one"


VERDICT = Verdict(False, "clip", "content", "Violence", "3-7")


@pytest.mark.parametrize("wrap", ["", "[request id: 1] in ensemble 'x', "])
def test_refusal_of_a_guardrail_is_no_mistake_of_the_caller(wrap):
    error = failures.error_from("INVALID_ARGUMENT", f"{wrap}{refusal(VERDICT)}", URL)
    assert type(error) is BlockedError
    assert (str(error), error.verdict) == (str(refusal(VERDICT)), None)


def test_message_that_only_mentions_a_refusal_is_none():
    error = failures.error_from("INVALID_ARGUMENT", "prompt 'blocked: me' is odd", URL)
    assert type(error) is InvalidRequestError


@pytest.mark.parametrize(
    ("verdict", "read"),
    [
        (dataclasses.asdict(VERDICT), VERDICT),
        ({**dataclasses.asdict(VERDICT), "new": 1}, VERDICT),
        ({"of": "another version"}, None),
        ("words", None),
        (["words"], None),
        (None, None),
    ],
)
def test_refusal_at_the_end_of_a_stream_brings_its_verdict(verdict, read):
    failure = Failure("INVALID_ARGUMENT", str(refusal(VERDICT)), verdict)
    error = failures.failure_error(failure, URL)
    assert type(error) is BlockedError
    assert error.verdict == read


@pytest.mark.parametrize("code", ["NOT_FOUND", "UNKNOWN"])  # unary calls and streams differ
@pytest.mark.parametrize("reason", ["is not found", "has no available versions"])
def test_unknown_model_says_how_to_wait_for_it(code, reason):
    error = failures.error_from(code, f"Request for unknown model: 'video2world' {reason}", URL)
    assert type(error) is ServerUnavailableError
    assert "predict2 ready" in str(error)
    assert URL in str(error)


CONNECT = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: refused"
TRITON = "[request id: 5] "


@pytest.mark.parametrize(
    ("code", "details", "trouble"),
    [
        ("UNAVAILABLE", CONNECT, "away"),
        ("UNAVAILABLE", "DNS resolution failed for x:1: C-ares status is not ARES_SUCCESS", "away"),
        ("UNAVAILABLE", "unavailable: the server is stopping", "away"),
        ("UNAVAILABLE", "something new", "away"),
        ("UNAVAILABLE", "Socket closed", "lost"),
        ("UNAVAILABLE", "Stream removed (recvmsg:Connection reset by peer (104))", "lost"),
        ("UNAVAILABLE", "GOAWAY received", "lost"),
        ("UNAVAILABLE", "Received http2 header with status: 502", "lost"),
        ("UNKNOWN", "Stream removed", "lost"),
        ("INTERNAL", "Received RST_STREAM with error code 2", "lost"),
        ("UNAVAILABLE", f"{TRITON}Exceeds maximum queue size", "busy"),
        ("UNKNOWN", "Exceeds maximum queue size", "busy"),  # on a stream
        ("UNAVAILABLE", "busy: the server is busy", "busy"),
        ("UNAVAILABLE", f"{TRITON}Request timeout expired", "final"),
        ("CANCELLED", "expired: the request's time limit passed", "final"),
        ("NOT_FOUND", "Request for unknown model: 'x' is not found", "no model"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "late"),
        ("INVALID_ARGUMENT", "prompt 'socket closed' is odd", "final"),
        ("INTERNAL", "out of memory", "final"),
        ("CANCELLED", "the request was cancelled through tracking", "final"),
    ],
)
def test_what_can_be_done_is_read_from_status_and_words(code, details, trouble):
    assert failures.trouble(code, details) == trouble


@pytest.mark.parametrize("wrap", ["", TRITON])
@pytest.mark.parametrize("code", ["UNAVAILABLE", "UNKNOWN"])
def test_full_queue_is_busy_and_says_how_to_wait(code, wrap):
    error = failures.error_from(code, f"{wrap}Exceeds maximum queue size", URL)
    assert type(error) is BusyError
    assert URL in str(error)
    assert "--retry-for" in str(error)


@pytest.mark.parametrize("kind", PREFIXES)
@pytest.mark.parametrize("answered", [True, False])
def test_prefix_of_the_wire_never_reaches_people(kind, answered):
    error = failures.error_from("UNAVAILABLE", f"{PREFIXES[kind]}why", URL, answered=answered)
    assert PREFIXES[kind] not in str(error).replace("is busy: ", "")
    assert "why" in str(error)


def test_time_limit_that_passed_in_the_queue_is_expired():
    error = failures.error_from("UNAVAILABLE", f"{TRITON}Request timeout expired", URL)
    assert type(error) is RequestExpiredError


def test_lost_connection_names_the_request_and_how_to_fetch_it():
    error = failures.lost_error("my-request", URL, 30)
    assert type(error) is ServerUnavailableError
    assert "predict2 fetch my-request" in str(error)


def test_unreachable_server_is_named_with_what_starts_one():
    details = (
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:8001: "
        "Failed to connect to remote host: Connection refused"
    )
    message = str(failures.error_from("UNAVAILABLE", details, URL))
    assert "predict2-serve" in message
    assert "Connection refused" in message
    assert "last error" not in message


@pytest.mark.parametrize(
    "text",
    [
        "seed 5 is too odd",
        "[request id: <id_unknown>] seed 5 is too odd",
        "in ensemble 'x', seed 5 is too odd",
        "Failed to process the request(s) for model instance 'text2image_0_0', message: "
        "seed 5 is too odd\n\nAt:\n  /repository/text2image/1/model.py(11): execute\n",
        "Failed to process the request(s) for model 'text2image_0_0', message: seed 5 is too odd",
    ],
)
def test_wrapping_of_triton_is_taken_off_messages(text):
    assert failures.plain_message(text) == "seed 5 is too odd"


def test_message_that_only_mentions_the_wrapping_is_left_alone():
    text = "prompt '[request id: 5] Failed to process' is odd"
    assert failures.plain_message(text) == text
