# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from predict2_runtime.door import WORD_VARIABLE, carried, check_caller
from predict2_spec.errors import InvalidRequestError
from predict2_spec.tensors import CRITIC, TEXT_ENCODER

WORD = {WORD_VARIABLE: "b7" * 32}


def call(pb_utils, parameters):
    return pb_utils.Request(parameters=parameters)


def test_a_call_from_within_passes(pb_utils):
    check_caller(TEXT_ENCODER, call(pb_utils, json.dumps(carried(WORD))), WORD)


@pytest.mark.parametrize(
    "parameters",
    ["", "{}", "[]", "null", "{", '{"word": ""}', '{"word": "b7"}', '{"word": null}', '{"word": 7}', '{"word": "\\u00fc"}'],
)  # fmt: skip
def test_a_call_from_outside_is_refused(pb_utils, parameters):
    with pytest.raises(InvalidRequestError, match=r"text_encoder answers .* --allow-stage-calls"):
        check_caller(TEXT_ENCODER, call(pb_utils, parameters), WORD)


def test_the_word_of_another_start_is_refused(pb_utils):
    other = json.dumps(carried({WORD_VARIABLE: "c8" * 32}))
    with pytest.raises(InvalidRequestError):
        check_caller(TEXT_ENCODER, call(pb_utils, other), WORD)


def test_where_no_word_was_made_stages_are_open(pb_utils):
    assert carried({}) == {}
    check_caller(TEXT_ENCODER, call(pb_utils, "{}"), {})


def test_the_critic_judges_for_anybody(pb_utils):
    check_caller(CRITIC, call(pb_utils, "{}"), WORD)
