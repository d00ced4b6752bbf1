# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime.status import from_triton, to_failure, to_triton
from predict2_spec.errors import (
    BlockedError,
    BusyError,
    RequestExpiredError,
    ServerError,
    ServerUnavailableError,
)
from predict2_spec.guardrails import Verdict, refusal

VERDICT = Verdict(False, "prompt", "blocklist", "weapons", "pipe bomb")


@pytest.mark.parametrize(
    "error",
    [
        refusal(VERDICT),
        ServerUnavailableError("no reasoner"),
        BusyError("as much as it takes"),
        RequestExpiredError("too late"),
    ],
)
def test_kind_and_words_survive_a_call_between_models_that_loses_the_code(pb_utils, error):
    sent = to_triton(pb_utils, error)
    received = pb_utils.TritonError(sent.message(), pb_utils.TritonError.INTERNAL)
    back = from_triton(pb_utils, received, "critic")
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_a_failure_of_another_model_names_it(pb_utils):
    error = from_triton(pb_utils, pb_utils.TritonError("no memory"), "critic")
    assert isinstance(error, ServerError)
    assert str(error) == "critic failed: no memory"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (BusyError("full"), "UNAVAILABLE", "busy: full"),
        (RequestExpiredError("too late"), "CANCELLED", "expired: too late"),
    ],
)
def test_callers_learn_the_kind_of_a_refusal_in_a_call_and_on_a_stream(
    pb_utils, error, status, message
):
    sent = to_triton(pb_utils, error)
    assert (sent.code(), sent.message()) == (getattr(pb_utils.TritonError, status), message)
    failure = to_failure(error)
    assert (failure.status, failure.message) == (status, message)


def test_a_stage_whose_queue_its_owner_bounded_is_busy(pb_utils):
    message = (
        "Model critic - Error when running inference: [request id: ] Exceeds maximum queue size"
    )
    error = from_triton(pb_utils, pb_utils.TritonError(message), "critic")
    assert isinstance(error, BusyError)


def test_a_refusal_on_a_stream_brings_its_verdict():
    failure = to_failure(refusal(VERDICT))
    assert failure.status == "INVALID_ARGUMENT"
    assert Verdict(**failure.verdict) == VERDICT
    assert to_failure(BlockedError("blocked: x")).verdict is None
