# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_runtime.server.tracing import trace_arguments
from predict2_spec.errors import ServerUnavailableError


def settings(where, rate=1):
    words = trace_arguments(where, rate)
    assert set(words[::2]) <= {"--trace-config"}
    return words[1::2]


def test_nothing_is_traced_unless_asked_for():
    assert trace_arguments(None, 1) == []


def test_a_file_gets_times_and_never_tensors(tmp_path):
    given = settings(str(tmp_path / "trace.json"), 10)
    assert f"triton,file={tmp_path / 'trace.json'}" in given
    assert {"mode=triton", "level=TIMESTAMPS", "rate=10"} <= set(given)
    assert "TENSORS" not in str(given)


def test_a_collector_is_named_as_triton_wants_it():
    given = settings("http://127.0.0.1:4318/v1/traces")
    assert {"mode=opentelemetry", "opentelemetry,url=127.0.0.1:4318/v1/traces"} <= set(given)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("https://collector/v1/traces", "over HTTP"),
        ("http:///v1/traces", "over HTTP"),
        ("/nowhere/at/all/trace.json", "isn't there"),
        ("a.json,level=TENSORS", "comma"),
        ("http://collector/v1 traces", "space"),
    ],
)
def test_what_triton_would_misread_is_refused(where, message):
    with pytest.raises(ServerUnavailableError, match=message):
        trace_arguments(where, 1)
