# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from predict2_runtime.server.chrome_trace import main, read_traces, to_chrome
from predict2_spec.errors import InvalidRequestError


def stamps(number, **times):
    return [{"id": number, "timestamps": [{"name": k, "ns": v}]} for k, v in times.items()]


# as Triton 2.51 wrote them, with rounder times
RECORDS = [
    {"id": 1, "model_name": "text2image", "model_version": 1, "request_id": "request-1"},
    {"id": 2, "model_name": "text_encoder", "model_version": 1, "parent_id": 1},
    *stamps(2, REQUEST_START=3000, QUEUE_START=3000, COMPUTE_START=4000, REQUEST_END=6000),
    *stamps(1, REQUEST_START=1000, QUEUE_START=1000, COMPUTE_START=2000, REQUEST_END=9000),
    {"id": 3, "model_name": "vae_decoder", "model_version": 1, "parent_id": 1},
    *stamps(3, REQUEST_START=7000),
]


def bars(events):
    return {(e["tid"], e["name"]): (e["pid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"}


def test_a_request_and_the_calls_it_made_are_one_process_with_a_row_a_model():
    events = to_chrome(RECORDS)["traceEvents"]
    assert bars(events) == {
        ("text2image", "text2image"): (1, 1.0, 8.0),
        ("text2image", "waits"): (1, 1.0, 1.0),
        ("text_encoder", "text_encoder"): (1, 3.0, 3.0),
        ("text_encoder", "waits"): (1, 3.0, 1.0),
    }
    named = [e["args"]["name"] for e in events if e["ph"] == "M"]
    assert named == ["text2image request-1"]


def test_a_child_whose_file_is_missing_its_parent_stands_by_itself():
    alone = [record for record in RECORDS if record["id"] == 2]
    assert bars(to_chrome(alone)["traceEvents"])["text_encoder", "waits"] == (1, 3.0, 1.0)


def test_parents_that_run_in_circles_end():
    assert not bars(
        to_chrome([{"id": 1, "parent_id": 2}, {"id": 2, "parent_id": 1}])["traceEvents"]
    )


def test_files_become_one(tmp_path, capsys):
    for name, part in (("trace.json.0", RECORDS[:3]), ("trace.json.1", RECORDS[3:])):
        (tmp_path / name).write_text(json.dumps(part))
    paths = sorted(map(str, tmp_path.iterdir()))
    assert main(paths) == 0
    assert json.loads(capsys.readouterr().out) == to_chrome(RECORDS)


@pytest.mark.parametrize("text", ["", "{}x", '{"a": 1}', '[{"id": "1"}]', "[1]"])
def test_other_files_are_refused(tmp_path, text, capsys):
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(InvalidRequestError, match="no trace file"):
        read_traces([path])
    assert main([str(path)]) == 1
    assert "no trace file" in capsys.readouterr().err
