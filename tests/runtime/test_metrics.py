# SPDX-License-Identifier: Apache-2.0
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest

from predict2_runtime.kept import Shelf
from predict2_runtime.metrics import BUCKETS, STATUSES, Metrics, stage_observer
from predict2_runtime.outcomes import Outcome
from predict2_spec.guardrails import Verdict

OK = Outcome("text2image", "ok", {"encode_text": 0.5, "denoise_image": 2.0, "total": 3.0}, 36)


@pytest.fixture
def endpoint():
    """Triton's metrics: one number for a name and labels, whichever process reports it; counters only grow."""
    numbers = defaultdict(float)

    class Metric:
        def __init__(self, family, labels, buckets=None):
            self.family = family
            self.key = family.name, *sorted(labels.items())
            assert (family.kind == "histogram") == (buckets is not None)
            numbers[self.key] += 0

        def increment(self, value):
            assert self.family.kind == "gauge" or value >= 0
            numbers[self.key] += value

        def set(self, value):
            assert self.family.kind == "gauge"
            numbers[self.key] = value

        def observe(self, value):
            assert self.family.kind == "histogram"
            numbers[self.key] += value

    class MetricFamily:
        COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

        def __init__(self, name, description, kind):
            self.name, self.kind = name, kind

        def Metric(self, labels, **options):  # noqa: N802 - Triton's name
            return Metric(self, labels, **options)

    def read(name, **labels):
        return numbers[name, *sorted(labels.items())]

    return SimpleNamespace(pb_utils=SimpleNamespace(MetricFamily=MetricFamily), read=read)


@pytest.fixture
def metrics(endpoint):
    return Metrics(endpoint.pb_utils, "text2image", "toy")


def test_a_request_is_counted_by_how_it_ended(endpoint, metrics):
    for outcome in (OK, OK, Outcome("text2image", "expired", {"total": 9.0}, 4)):
        metrics.observe(outcome)
    counted = {
        s: endpoint.read("predict2_requests_total", model="text2image", outcome=s) for s in STATUSES
    }
    assert counted == dict.fromkeys(STATUSES, 0) | {"ok": 2, "expired": 1}
    assert endpoint.read("predict2_steps_total", model="text2image") == 76


def test_stages_share_the_time_and_only_good_requests_have_a_duration(endpoint, metrics):
    metrics.observe(OK)
    metrics.observe(Outcome("text2image", "failed", {"encode_text": 0.25, "total": 9.0}, 0))
    seconds = {
        stage: endpoint.read("predict2_stage_seconds_total", model="text2image", stage=stage)
        for stage in ("encode_text", "denoise_image", "total")
    }
    assert seconds == {"encode_text": 0.75, "denoise_image": 2.0, "total": 0}
    assert endpoint.read("predict2_request_seconds", model="text2image") == 3.0
    assert list(BUCKETS) == sorted(BUCKETS)


def test_processes_of_one_model_add_up(endpoint, metrics):
    Metrics(endpoint.pb_utils, "text2image", "toy").observe(OK)
    metrics.observe(OK)
    assert (
        endpoint.read("predict2_requests_total", model="text2image", outcome="ok")
        == endpoint.read("predict2_request_seconds", model="text2image") / 3.0
        == 2
    )


def test_a_request_counts_as_running_until_its_handler_returns_or_fails(endpoint, metrics):
    def running():
        return endpoint.read("predict2_running", model="text2image")

    def work(inputs, progress):
        assert running() == 1
        if inputs:
            raise ZeroDivisionError
        return {}

    handler = metrics.running(work)
    assert handler({}, None) == {}
    assert running() == 0
    with pytest.raises(ZeroDivisionError):
        handler({"x": 1}, None)
    assert running() == 0


def test_refusals_are_counted_by_what_refused_what_and_why(endpoint, metrics):
    metrics.count_blocked(Verdict(False, "clip", "content", "Violence", entry="3-7"))
    metrics.count_blocked(Verdict(False, "clip", "content", "Violence", entry="9"))
    labels = {"subject": "clip", "check": "content", "category": "Violence"}
    assert endpoint.read("predict2_blocked_total", **labels) == 2


def test_memory_of_the_processes_of_a_stage_adds_up(endpoint, monkeypatch):
    held = 100
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: True, memory_reserved=lambda: held)
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    first, second = (stage_observer(endpoint.pb_utils, "vae_decoder") for _ in range(2))

    def told():
        return endpoint.read("predict2_gpu_memory_bytes", model="vae_decoder")

    assert told() == 200
    held = 150
    first(OK)
    assert told() == 250
    second(OK)
    assert told() == 300
    held = 0
    first(OK)
    assert told() == 150


def test_where_nothing_computes_on_a_gpu_torch_is_not_imported_to_find_out(endpoint, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    stage_observer(endpoint.pb_utils, "vae_decoder")(OK)
    assert "torch" not in sys.modules
    assert endpoint.read("predict2_gpu_memory_bytes", model="vae_decoder") == 0


def test_what_is_kept_and_what_shared_memory_is_left_is_told(endpoint, tmp_path):
    shelf = Shelf(tmp_path, 10**6, 3600)
    state = SimpleNamespace(ended=shelf)
    metrics = Metrics(endpoint.pb_utils, "text2image", "toy", state)
    assert endpoint.read("predict2_kept_bytes") == 0
    (tmp_path / "result").write_bytes(b"12345")
    (tmp_path / ".part-of-another").write_bytes(b"123")
    metrics.observe(OK)
    assert endpoint.read("predict2_kept_bytes") == 5
    used, total = (endpoint.read("predict2_shared_memory_bytes", kind=k) for k in ("used", "total"))
    assert 0 <= used <= total
    assert total > 0


def test_a_folder_that_is_gone_fails_no_request(endpoint, tmp_path):
    state = SimpleNamespace(ended=Shelf(tmp_path / "gone", 10**6, 3600))
    Metrics(endpoint.pb_utils, "text2image", "toy", state).observe(OK)
    assert endpoint.read("predict2_requests_total", model="text2image", outcome="ok") == 1
