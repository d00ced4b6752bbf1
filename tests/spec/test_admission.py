# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_spec.admission import PREFIXES, busy, error_from_words, prefix_of
from predict2_spec.errors import (
    BusyError,
    EngineMismatchError,
    InvalidRequestError,
    RequestCancelledError,
    RequestExpiredError,
    ServerUnavailableError,
)


@pytest.mark.parametrize("kind", [BusyError, ServerUnavailableError, RequestExpiredError])
def test_kind_and_words_survive_where_only_a_message_does(kind):
    error = kind("the words")
    back = error_from_words(f"{prefix_of(error)}{error}")
    assert type(back) is kind
    assert str(back) == "the words"


@pytest.mark.parametrize(
    "error",
    [InvalidRequestError("no"), RequestCancelledError("gone")],
)
def test_other_errors_travel_by_their_status(error):
    assert prefix_of(error) == ""
    assert error_from_words(str(error)) is None


def test_an_engine_that_does_not_fit_is_a_server_that_is_not_there():
    error = EngineMismatchError("built for another GPU")
    assert type(error_from_words(f"{prefix_of(error)}{error}")) is ServerUnavailableError


def test_no_prefix_hides_another():
    kinds = list(PREFIXES)
    for place, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[place + 1 :])


# As Triton 2.51 words them: to a caller, on a stream, and to a model that called another.
@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("[request id: r1] Exceeds maximum queue size", BusyError),
        (
            "Model plain - Error when running inference: [request id: b] Exceeds maximum queue size",
            BusyError,
        ),
        ("Request timeout expired", RequestExpiredError),
    ],
)
def test_triton_s_own_refusals_are_known_by_their_words(message, kind):
    assert type(error_from_words(message)) is kind


def test_a_busy_answer_says_when_to_try_again():
    assert str(busy("16 requests wait", 30)) == (
        "the server is busy: 16 requests wait; try again in 30 s"
    )
    assert "try again in 10 s" in str(error_from_words("Exceeds maximum queue size"))
