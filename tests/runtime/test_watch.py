# SPDX-License-Identifier: Apache-2.0
import gc
import json
import os
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest

from predict2_runtime.bls import REQUEST_ID
from predict2_runtime.drain import RUN_FOLDER_VARIABLE, stop_taking
from predict2_runtime.following import make_state
from predict2_runtime.policy import POLICY_VARIABLE, Policy
from predict2_runtime.serve import serve, serve_stream
from predict2_runtime.watch import Terms, open_terms
from predict2_spec.errors import InvalidRequestError, ServerUnavailableError
from predict2_spec.results import Event, Failure
from predict2_spec.tensors import BEST_OF_N, GENERATE, MODELS
from predict2_spec.tracking import LEASE_PARAMETER

ID = "request-0001"
TEXT2IMAGE = MODELS["text2image"]
STEPS = 5


def text(value):
    return np.array([value], dtype=np.object_)


class Work:
    """A handler that takes STEPS steps; `between` is called before each but the first."""

    def __init__(self, between=lambda: None):
        self.between, self.steps, self.runs = between, 0, 0

    def __call__(self, inputs, progress):
        self.runs += 1
        for step in range(STEPS):
            if step:
                self.between()
            self.steps += 1
            progress.done("denoise_image", step + 1, STEPS)
        return {"media": np.zeros(3, np.uint8), "metadata": "{}", "frames": None}


@pytest.fixture
def terms(tmp_path):
    return Terms(make_state(tmp_path / "state", Policy()), 3600.0)


@pytest.fixture
def ask(pb_utils, terms):
    """ask(work, ...): the one response of text2image."""

    def ask(work, prompt=b"a ball", lease_s=None, model=TEXT2IMAGE, **options):
        if lease_s is not None:
            options["parameters"] = json.dumps({LEASE_PARAMETER: lease_s})
        options.setdefault("request_id", ID)
        request = pb_utils.Request(prompt=text(prompt), **options)
        (response,) = serve(pb_utils, model, [request], work, terms=terms)
        return response

    return ask


def state_of(terms):
    return terms.state.look(ID)[0]


def test_progress_and_result_are_told_by_the_id(ask, terms):
    seen = []
    work = Work(lambda: seen.append(state_of(terms)))
    assert ask(work).error is None
    assert [(s.state, s.event.step, s.event.of) for s in seen] == [
        ("running", step, STEPS) for step in range(1, STEPS)
    ]
    assert state_of(terms).state == "done"


def test_a_stream_is_followed_too(pb_utils, terms):
    request = pb_utils.Request(task=text(b"text2image"), prompt=text(b"a"), request_id=ID)
    serve_stream(pb_utils, GENERATE, [request], Work(), terms=terms)
    assert len(request.sent) == STEPS + 1
    assert state_of(terms).state == "done"


def test_the_same_again_is_answered_without_work_in_full(ask, terms):
    ranking = {"media": np.arange(9, dtype=np.uint8), "metadata": '{"a": 1}', "ranking": "[]"}
    first = ask(lambda inputs, progress: ranking, model=BEST_OF_N)
    again = ask(None, model=BEST_OF_N)
    assert again.error is None
    assert {k: v.tolist() for k, v in again.outputs.items()} == {
        k: v.tolist() for k, v in first.outputs.items()
    }


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": b"a bell"},
        {"seed": np.array([1])},
        {"model": MODELS["text2world"]},
        {"image": np.zeros(2, np.uint8), "model": MODELS["video2world"]},
    ],
)
def test_an_id_is_for_one_content(ask, other):
    work = Work()
    ask(work)
    assert "other content" in ask(work, **other).error.message()
    assert work.runs == 1


@pytest.mark.parametrize(
    "image", [np.ones(8, np.uint8), np.zeros(7, np.uint8), np.zeros((2, 4), np.uint8), np.zeros(1)]
)
def test_content_is_told_apart_by_bytes_shape_and_type(ask, image):
    work = Work()
    ask(work, model=BEST_OF_N, image=np.zeros(8, np.uint8))
    assert "other content" in ask(work, model=BEST_OF_N, image=image).error.message()


def test_a_request_of_a_running_ones_id_is_refused_and_the_other_goes_on(ask, terms):
    refused = []
    work = Work(lambda: refused.append(ask(None).error.message()))
    assert ask(work).error is None
    assert work.steps == STEPS
    assert len(refused) == STEPS - 1
    assert "is running" in refused[0]
    assert state_of(terms).state == "done"


def test_without_an_id_nothing_is_followed(ask, terms):
    assert ask(Work(), request_id="").error is None
    assert [p for p in terms.state.folder.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    "request_id", ["short", "-begins-badly", "a b c d e f", "ä" * 10, "x" * 129, "../../x/y"]
)
def test_an_id_that_cannot_be_one_has_no_lease(ask, pb_utils, request_id):
    error = ask(None, lease_s=10, request_id=request_id).error
    assert error.code() == pb_utils.TritonError.INVALID_ARG
    assert error.message().startswith(f"request id '{request_id}' must be")


@pytest.mark.parametrize("request_id", ["0", "281474976710656", "short", "../../x/y"])
def test_ids_that_nobody_means_are_not_followed(ask, terms, request_id):
    """Triton's own tools count theirs up, the same in every run."""
    for _ in range(2):
        assert ask(Work(), request_id=request_id).error is None
    assert [p for p in terms.state.folder.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("lease_s", [1, 0, -5, 3601, 2.5, 10.0, "10", True, 1e30])
def test_a_lease_that_cannot_be_one_is_refused_by_its_value(ask, pb_utils, lease_s):
    error = ask(None, lease_s=lease_s).error
    assert error.code() == pb_utils.TritonError.INVALID_ARG
    assert (
        error.message() == f"lease_s {lease_s!r} must be a whole number of seconds from 2 to 3600"
    )


def test_parameters_that_are_no_json_are_refused(ask):
    assert "parameters can't be read" in ask(None, parameters="{").error.message()


def test_a_lease_needs_an_id(ask):
    assert "give it an id as well" in ask(None, lease_s=10, request_id="").error.message()


def test_a_lease_needs_a_server_that_follows(pb_utils):
    request = pb_utils.Request(prompt=text(b"a"), request_id=ID, parameters='{"lease_s": 5}')
    (response,) = serve(pb_utils, TEXT2IMAGE, [request], None)
    assert "server started by predict2-serve" in response.error.message()


def test_cancelling_through_tracking_stops_within_a_step(ask, terms, pb_utils):
    work = Work(lambda: terms.state.cancel(ID))
    error = ask(work).error
    assert error.code() == pb_utils.TritonError.CANCELLED
    assert work.steps == 2
    assert state_of(terms).failure == Failure("CANCELLED", error.message())


def test_what_is_cancelled_before_it_begins_never_runs(ask, terms):
    terms.state.cancel(ID)
    assert "cancelled through tracking" in ask(None).error.message()
    assert state_of(terms).state == "failed"


def test_without_a_lease_a_broken_connection_stops_the_work(ask, terms):
    work = Work()
    ask(work, cancelled=True)
    assert work.steps == 1
    assert state_of(terms).failure.message == "the request was cancelled by its caller"


def test_under_a_lease_a_broken_connection_stops_nothing(ask, terms):
    work = Work()
    ask(work, cancelled=True, lease_s=10)
    assert work.steps == STEPS
    assert state_of(terms).state == "done"


def test_nothing_is_sent_to_a_stream_that_is_gone(pb_utils, terms):
    request = pb_utils.Request(
        cancelled=True,
        request_id=ID,
        parameters='{"lease_s": 5}',
        task=text(b"x"),
        prompt=text(b"a"),
    )
    serve_stream(pb_utils, GENERATE, [request], Work(), terms=terms)
    assert request.sent == [(None, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)]
    assert state_of(terms).state == "done"


def test_an_expired_lease_stops_within_a_step(ask, terms):
    def time_goes_by():
        (claim,) = terms.state.folder.glob("running/*/claim")
        os.utime(claim, ns=(0, claim.stat().st_mtime_ns - 10_000_000_000))

    work = Work(time_goes_by)
    assert "nobody renewed the request's lease of 5 s" in ask(work, lease_s=5).error.message()
    assert work.steps == 2


@pytest.mark.parametrize("caller_is_gone", [False, True])
def test_a_lease_that_waits_begins_when_the_connection_is_lost(pb_utils, terms, caller_is_gone):
    """Renewals may go astray where servers come and go behind a proxy; the call itself can't."""

    def nobody_renews():
        (claim,) = terms.state.folder.glob("running/*/claim")
        os.utime(claim, ns=(0, claim.stat().st_mtime_ns - 10_000_000_000))

    work = Work(nobody_renews)
    request = pb_utils.Request(
        prompt=text(b"a"),
        request_id=ID,
        parameters='{"lease_s": 5, "lease_waits": true}',
        cancelled=caller_is_gone,
    )
    (response,) = serve(pb_utils, TEXT2IMAGE, [request], work, terms=terms)
    assert (response.error is not None) == caller_is_gone
    assert work.steps == (2 if caller_is_gone else STEPS)


def test_a_lease_that_waited_is_a_whole_one_from_the_loss_on(pb_utils, terms):
    def time_goes_by():
        (claim,) = terms.state.folder.glob("running/*/claim")
        os.utime(claim, ns=(0, claim.stat().st_mtime_ns - 3_000_000_000))

    work = Work(time_goes_by)
    request = pb_utils.Request(
        prompt=text(b"a"), request_id=ID, parameters='{"lease_s": 5, "lease_waits": true}'
    )
    request.is_cancelled = lambda: work.steps > 2
    (response,) = serve(pb_utils, TEXT2IMAGE, [request], work, terms=terms)
    assert response.error is not None
    assert (
        work.steps == 4
    )  # lost at the third step: three seconds of five are over there, six at the fourth


@pytest.mark.parametrize("caller_is_gone", [False, True])
def test_a_server_that_stops_finishes_for_callers_who_wait_though_they_can_not_renew(
    pb_utils, terms, caller_is_gone
):
    def nobody_renews():
        (claim,) = terms.state.folder.glob("running/*/claim")
        os.utime(claim, ns=(0, claim.stat().st_mtime_ns - 10_000_000_000))

    work = Work(nobody_renews)
    request = pb_utils.Request(
        prompt=text(b"a"), request_id=ID, parameters='{"lease_s": 5}', cancelled=caller_is_gone
    )
    stops = replace(terms, stopping=lambda: True)
    (response,) = serve(pb_utils, TEXT2IMAGE, [request], work, terms=stops)
    assert (response.error is None) is not caller_is_gone
    assert work.steps == (2 if caller_is_gone else STEPS)


def test_a_server_knows_that_it_stops(tmp_path):
    terms = open_terms({RUN_FOLDER_VARIABLE: str(tmp_path), POLICY_VARIABLE: Policy().to_json()})
    assert not terms.stopping()
    stop_taking(tmp_path)
    assert terms.stopping()


@pytest.mark.parametrize(
    ("timeout_us", "longest_s", "told"),
    [(30_000, 3600.0, "0.03"), (0, 0.03, "0.03"), (9_000_000, 0.03, "0.03")],
)
def test_the_lower_time_limit_stops_within_a_step(pb_utils, timeout_us, longest_s, told):
    work, ended = Work(lambda: time.sleep(0.1)), []
    request = pb_utils.Request(prompt=text(b"a"), timeout_us=timeout_us)
    terms = Terms(None, longest_s)
    (response,) = serve(pb_utils, TEXT2IMAGE, [request], work, terms=terms, observe=ended.append)
    assert f"time limit of {told} s passed; allow it more time" in response.error.message()
    assert work.steps == 2
    assert [outcome.status for outcome in ended] == ["expired"]


@pytest.mark.parametrize("error", [InvalidRequestError("no"), ServerUnavailableError("no")])
def test_a_failure_is_kept_as_the_caller_was_told(ask, terms, error):
    def fail(inputs, progress):
        raise error

    message = ask(fail).error.message()
    failed = state_of(terms)
    assert failed.state == "failed"
    assert failed.failure.message in message


def test_a_defect_is_kept_without_its_insides(ask, terms):
    ask(lambda inputs, progress: 1 / 0)
    assert state_of(terms).failure == Failure(
        "INTERNAL", "text2image failed on this request; the server's log says why"
    )


def test_a_disk_that_takes_nothing_stops_no_request(ask, full_disk, terms, caplog):
    with full_disk(0):
        assert ask(Work(), lease_s=10).error is None
    assert "can't be followed" in caplog.text
    assert state_of(terms).state == "unknown"


def test_calls_of_other_models_carry_the_id(ask):
    seen = []
    ask(Work(lambda: seen.append(REQUEST_ID.get())))
    assert seen == [ID] * (STEPS - 1)
    assert REQUEST_ID.get() == ""


class Large(np.ndarray):
    """An array that one can ask for whether it is still there."""


@pytest.mark.parametrize("lease_s", [None, 10], ids=["caller gone", "cancelled through tracking"])
def test_work_that_was_stopped_leaves_nothing_in_memory(ask, terms, lease_s):
    kept = []

    def work(inputs, progress):
        latents = np.zeros(1000).view(Large)
        kept.append(weakref.ref(latents))
        terms.state.cancel(ID)
        progress.done("denoise_image", 1, 2)

    gc.disable()  # nothing may wait for it: a clip's latents and frames are large
    try:
        assert ask(work, lease_s=lease_s, cancelled=True).error is not None
        assert kept[0]() is None
    finally:
        gc.enable()


def test_a_server_without_predict2_serve_follows_nothing_and_ends_after_an_hour():
    assert open_terms({}) == Terms(None, 3600)


def test_the_terms_are_the_owners(tmp_path):
    policy = Policy(request_timeout_s=5, kept_seconds=7)
    environment = {RUN_FOLDER_VARIABLE: str(tmp_path), POLICY_VARIABLE: policy.to_json()}
    terms = open_terms(environment)
    assert (terms.longest_s, terms.state.ended.max_seconds) == (5, 7)


def test_an_event_tells_the_rest(ask, terms):
    seen = []
    ask(Work(lambda: seen.append(state_of(terms).event)))
    assert all(isinstance(e, Event) and e.eta_s is not None for e in seen)
