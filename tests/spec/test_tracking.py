# SPDX-License-Identifier: Apache-2.0
import json
from uuid import uuid4

import pytest

from predict2_spec.errors import InvalidRequestError
from predict2_spec.results import Event, Failure
from predict2_spec.tracking import RequestState, check_request_id


@pytest.mark.parametrize("request_id", [str(uuid4()), uuid4().hex, "job-2026.11_a"])
def test_usual_ids_pass(request_id: str) -> None:
    check_request_id(request_id)


@pytest.mark.parametrize(
    "request_id",
    ["", "short", "../../etc/passwd", "a" * 129, "-begins-with-it", "line\nline00", "ünïcodeid"],
)
def test_an_id_that_could_be_a_path_or_be_guessed_is_refused(request_id: str) -> None:
    with pytest.raises(InvalidRequestError, match="8 to 128"):
        check_request_id(request_id)


@pytest.mark.parametrize(
    "state",
    [
        RequestState("unknown"),
        RequestState("running", event=Event("denoise_video", 3, 36, 1.5)),
        RequestState("failed", failure=Failure("INTERNAL", "it broke"), kept_s=12.5),
    ],
)
def test_a_state_survives_the_wire(state: RequestState) -> None:
    assert RequestState.from_json(state.to_json()) == state


def test_fields_of_a_later_version_are_ignored() -> None:
    values = {**json.loads(RequestState("done", kept_s=1.0).to_json()), "colour": "blue"}
    assert RequestState.from_json(json.dumps(values)) == RequestState("done", kept_s=1.0)
