# SPDX-License-Identifier: Apache-2.0
import json
import logging
import re
import threading

import pytest

from predict2_runtime.logs import WITHHELD, begin_request, open_log, withhold, write_outcome
from predict2_runtime.outcomes import Outcome

OK = Outcome("text2image", "ok", {"encode_text": 0.25, "denoise_image": 1.0, "total": 1.3125}, 36)
PROMPT = "a purple elephant in Zürich"
log = logging.getLogger("predict2_runtime.test")
other = logging.getLogger("some_library")


@pytest.fixture(autouse=True)
def _restored():
    root, ours = logging.root, logging.getLogger("predict2_runtime")
    before = root.handlers, root.level, ours.level
    yield
    begin_request("")
    root.handlers = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def written(capsys):
    """written(form, level): begin a log; what it returns reads the lines written since."""

    def begin(form="json", level="info", secrets=()):
        open_log(form, level, "text2image", "text2image_0_1", secrets)
        return lambda: [
            json.loads(line) if form == "json" else line
            for line in capsys.readouterr().err.splitlines()
        ]

    return begin


def test_a_request_is_one_line_of_json(written):
    lines = written()
    begin_request("request-0001")
    write_outcome(OK)
    (line,) = lines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "model": "text2image",
        "instance": "text2image_0_1",
        "request_id": "request-0001",
        "event": "request",
        "outcome": "ok",
        "seconds": 1.3125,
        "steps": 36,
        "stages": {"encode_text": 0.25, "denoise_image": 1.0},
    }


def test_a_request_is_one_line_of_text(written):
    lines = written("text")
    begin_request("request-0001")
    write_outcome(OK)
    (line,) = lines()
    assert line.endswith("Z info text2image [request-0001] request ok after 1.312 s, 36 steps")


def test_calls_of_stages_are_for_those_who_ask_for_details(written):
    lines = written(level="info")
    write_outcome(OK, stage=True)
    assert lines() == []
    lines = written(level="debug")
    write_outcome(OK, stage=True)
    assert [line["level"] for line in lines()] == ["debug"]


def test_a_failure_is_seen_at_every_level(written):
    lines = written(level="error")
    for status in ("ok", "refused", "unavailable", "failed"):
        write_outcome(Outcome("m", status, {"total": 1.0}, 0), stage=True)
    assert [line["outcome"] for line in lines()] == ["failed"]


def test_lines_of_other_threads_are_about_the_same_request(written):
    lines = written()
    begin_request("request-0001")
    thread = threading.Thread(target=log.warning, args=("beside",))
    thread.start()
    thread.join()
    begin_request("")
    log.warning("after")
    assert [line["request_id"] for line in lines()] == ["request-0001", ""]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_caller_writes_no_lines_of_its_own(written, form):
    lines = written(form)
    begin_request("x\n2026-01-01T00:00:00.000Z error text2image all is lost\x1b[2J" + "y" * 1000)
    write_outcome(OK)
    (line,) = lines()
    assert len(str(line)) < 500
    assert "\x1b" not in str(line)


def test_a_message_of_several_lines_stays_one_event_of_text(written):
    lines = written("text")
    log.warning("first\nsecond")
    assert [line.startswith("  ") for line in lines()] == [False, True]


def fail(message):
    raise ValueError(message)


def test_a_defect_says_what_and_where(written):
    lines = written()
    try:
        fail("out of memory: 3 GiB")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert line["level"] == "error"
    assert line["message"] == "it failed"
    assert "ValueError: out of memory: 3 GiB" in line["exception"]
    assert re.search(r"test_logs\.py:\d+ fail$", line["exception"])


@pytest.mark.parametrize(
    "message", [PROMPT, "can't tokenize 'a purple'", "ELEPHANT!", "b'in Z\u00fcrich'", "Elephant's"]
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_library_repeats_a_prompt(written, form, message):
    lines = written(form)
    begin_request("request-0001")
    withhold([PROMPT, "blurry"])
    other.warning("bad: %s", message)
    try:
        fail(message)
    except ValueError:
        log.exception("it failed")
    text = str(lines())
    assert text.count(WITHHELD) == 2
    assert "lephant" not in text
    assert "urple" not in text
    assert "rich" not in text


def test_no_library_repeats_a_key(written):
    lines = written(secrets=("hf_0123", ""))
    other.warning("refused: Bearer hf_0123")
    other.warning("harmless")
    assert [line["message"] for line in lines()] == [
        f"some_library: {WITHHELD}",
        "some_library: harmless",
    ]


def test_the_next_request_may_be_told_what_this_one_said(written):
    lines = written()
    begin_request("request-0001")
    withhold([PROMPT])
    begin_request("request-0002")
    other.warning("purple")
    assert [line["message"] for line in lines()] == ["some_library: purple"]
