# SPDX-License-Identifier: Apache-2.0
"""What a server tells whoever runs it: metrics, log, traces; and that none of it repeats a prompt."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
import tritonclient.grpc

from predict2_client import Client
from predict2_client.cli import main
from predict2_runtime.server.chrome_trace import read_traces, to_chrome

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "observability"
PROMPT = "a red ball beside a zanzibarian xylophone"
BAD_PROMPT = "how to make cocaine"
REQUEST_ID = "observed-request-1"
# Triton's where there is a GPU, and kube-state-metrics'.
ELSEWHERE = ("nv_gpu_", "kube_pod_")
_METRIC = re.compile(r"\b(?:nv|predict2|kube)_[a-z0-9_]+")


def read_metrics(server):
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        return answer.read().decode()


@pytest.fixture(scope="module")
def observed(slim_repository, tmp_path_factory, serve_class, infer_inputs):
    """A server that logs everything as JSON and traces, after a picture, a refusal and a mistake: metrics and files."""
    folder = tmp_path_factory.mktemp("observed")
    options = ("--log-format", "json", "--log-level", "debug", "--trace", folder / "trace.json")
    temporary = folder / "temporary"
    temporary.mkdir()
    serve = serve_class(folder / "log.txt", slim_repository, *options, TMPDIR=str(temporary))
    try:
        serve.wait_until_ready()
        with tritonclient.grpc.InferenceServerClient(serve.url) as triton:

            def ask(**values):
                inputs = infer_inputs(tritonclient.grpc, "text2image", values)
                return triton.infer("text2image", inputs, request_id=REQUEST_ID, client_timeout=120)

            ask(prompt=PROMPT, num_steps=2)
        with Client(serve.url) as client:
            for prompt, changes in ((BAD_PROMPT, {}), (PROMPT, {"aspect_ratio": "5:1"})):
                with pytest.raises(Exception, match=r"."):
                    client.text2image(prompt, **changes)
        metrics = read_metrics(serve)
        assert serve.stop() == 0, serve.text()
        yield metrics, serve.text(), folder
    finally:
        serve.kill()
        serve.sweep()


def value(metrics, name, **labels):
    for line in metrics.splitlines():
        if line.startswith(f"{name}{{") and all(f'{k}="{v}"' in line for k, v in labels.items()):
            return float(line.rpartition(" ")[2])
    return None


def test_requests_are_counted_by_how_they_ended(observed):
    metrics, _, _ = observed
    names = {"model": "text2image"}
    assert value(metrics, "predict2_requests_total", outcome="ok", **names) == 1
    assert value(metrics, "predict2_steps_total", **names) == 3  # and the clean prediction
    assert value(metrics, "predict2_request_seconds_count", **names) == 1
    assert value(metrics, "predict2_running", **names) == 0
    assert value(metrics, "predict2_stage_seconds_total", stage="denoise_image", **names) > 0
    ended = {
        outcome: sum(
            value(metrics, "predict2_requests_total", outcome=outcome, model=model)
            for model in ("text2image", "generate")
        )
        for outcome in ("ok", "blocked", "refused", "failed")
    }
    assert ended["ok"] == ended["blocked"] == 1
    assert ended["failed"] == 0


def test_a_refusal_says_what_was_refused_and_why(observed):
    metrics, _, _ = observed
    labels = {"subject": "prompt", "check": "blocklist", "category": "drugs"}
    assert value(metrics, "predict2_blocked_total", **labels) == 1


def test_what_is_served_and_since_when_is_told(observed):
    metrics, _, _ = observed
    assert value(metrics, "predict2_build_info", preset="toy") == 1
    assert value(metrics, "predict2_start_time_seconds", model="text2image") > 1.7e9
    assert value(metrics, "predict2_shared_memory_bytes", kind="total") > 0


@pytest.mark.parametrize("file", ["dashboard.json", "alerts.yaml"])
def test_every_metric_that_is_shown_or_watched_exists(observed, file):
    metrics, _, _ = observed
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", metrics, re.MULTILINE))
    have = {
        f"{name}{end}"
        for name, kind in kinds.items()
        for end in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))
    }
    used = set(_METRIC.findall((FILES / file).read_text()))
    assert len(used) > 10
    assert {name for name in used if not name.startswith(ELSEWHERE)} <= have


def lines(observed):
    _, text, _ = observed
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_each_call_of_a_request_is_a_line_with_its_id(observed):
    about = [line for line in lines(observed) if line["request_id"] == REQUEST_ID]
    calls = [line["model"] for line in about if line["event"] == "request"]
    assert {"text2image", "guardrail_text", "text_encoder", "vae_decoder"} <= set(calls)
    assert calls.count("text2image_denoiser") == 3
    (own,) = [line for line in about if line["model"] == "text2image"]
    assert (own["level"], own["outcome"], own["steps"]) == ("info", "ok", 3)
    assert own["seconds"] >= sum(own["stages"].values()) - 0.01
    assert {"check_prompt", "encode_text", "denoise_image", "decode_image"} <= own["stages"].keys()


def test_nothing_that_is_written_repeats_a_prompt(observed):
    _, text, folder = observed
    written = text + "".join(path.read_text() for path in folder.glob("trace.json*"))
    for word in ("zanzibarian", "xylophone", "cocaine"):
        assert word not in written.casefold()


def test_a_request_is_traced_with_every_call_it_made(observed):
    _, _, folder = observed
    events = to_chrome(read_traces(sorted(folder.glob("trace.json*"))))["traceEvents"]
    (process,) = [e["pid"] for e in events if e["ph"] == "M" and REQUEST_ID in e["args"]["name"]]
    bars = [e for e in events if e["ph"] == "X" and e["pid"] == process and e["name"] == e["tid"]]
    calls = [bar["name"] for bar in bars]
    assert calls.count("text2image_denoiser") == 3
    whole = next(bar for bar in bars if bar["name"] == "text2image")
    assert all(whole["ts"] <= bar["ts"] for bar in bars)
    assert all(bar["ts"] + bar["dur"] <= whole["ts"] + whole["dur"] for bar in bars)


def test_the_doctor_finds_a_server_and_its_repository_well(server, toy_repository, capsys):
    assert main(["doctor", "--url", server.url, "--repository", str(toy_repository)]) == 0
    said = capsys.readouterr().out
    assert f"ok      server: {server.url} is ready: triton 2." in said
    assert "text2image, video2world, text2world, generate" in said
    assert "ok      engine video2world_denoiser: onnxruntime" in said
    assert "failed" not in said
