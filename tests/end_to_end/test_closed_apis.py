# SPDX-License-Identifier: Apache-2.0
"""What a caller has no business with is closed, over HTTP and gRPC alike; what health checks and tools read is open."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from predict2_client import Client

pytestmark = pytest.mark.server

CLOSED = {
    "/v2/logging": {"log_verbose_level": 1},
    "/v2/trace/setting": {"trace_level": ["TIMESTAMPS"]},
    "/v2/models/text2image/trace/setting": {"trace_level": ["TIMESTAMPS"]},
    "/v2/repository/index": {},
    "/v2/repository/models/text2image/unload": {},
    "/v2/repository/models/text2image/load": {},
    "/v2/systemsharedmemory/region/mine/register": {"key": "/predict2", "byte_size": 10},
    # a body that ends Triton 2.51 where it is read
    "/v2/models/text2image/infer": {
        "inputs": [{"name": "seed", "datatype": "INT64", "shape": [2**31, 3], "data": [1]}]
    },
    "/v2/models/text2image/generate": {"prompt": "a ball"},
    "/v2/cudasharedmemory/status": None,
    "/v2/systemsharedmemory/status": None,
}
OPEN = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/text2image/config")
OPEN_STATISTICS = "/v2/models/text2image/stats"


def fetch(server, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(f"http://{server.http_url}{path}", data, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("path", CLOSED)
def test_http_callers_can_only_look(server, path):
    assert fetch(server, path, CLOSED[path]) == 403


@pytest.mark.parametrize("path", [*OPEN, OPEN_STATISTICS])
def test_what_tools_read_is_open(server, path):
    assert fetch(server, path) == 200


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.get_model_repository_index(),
        lambda client: client.unload_model("text2image"),
        lambda client: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        lambda client: client.update_log_settings({"log_verbose_level": 1}),
        lambda client: client.register_system_shared_memory("mine", "/predict2", 10),
        lambda client: client.get_cuda_shared_memory_status(),
    ],
)
def test_grpc_callers_can_only_infer_and_look(server, ask):
    with (
        tritonclient.grpc.InferenceServerClient(server.url) as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        ask(client)


def test_a_request_with_somebody_elses_shared_memory_is_refused(server):
    """The region that a stage of the server itself uses can't be named, for it was never registered."""
    prompt = tritonclient.grpc.InferInput("prompt", [1], "BYTES")
    prompt.set_shared_memory("predict2", 64)
    with (
        tritonclient.grpc.InferenceServerClient(server.url) as client,
        pytest.raises(InferenceServerException, match="Unable to find"),
    ):
        client.infer("text2image", [prompt], client_timeout=60)


STAGES_INPUTS = {
    "text_encoder": {"prompt": ["a ball"]},
    "vae_decoder": {"latents": np.zeros((16, 1, 2, 2), np.float32)},
    "guardrail_text": {"text": "a ball"},
    "prompt_refiner": {"prompt": "a ball"},
}


@pytest.fixture(scope="module")
def strict_server(slim_repository, serve_class, tmp_path_factory):
    """As people start it."""
    folder = tmp_path_factory.mktemp("strict")
    serve = serve_class(folder / "log.txt", slim_repository, TMPDIR=str(folder))
    try:
        yield serve.wait_until_ready()
    finally:
        serve.kill()


def test_stages_do_not_answer_callers(strict_server, infer_inputs):
    """Text could be encoded and latents decoded past the guardrails."""
    with tritonclient.grpc.InferenceServerClient(strict_server.url) as client:
        for model, values in STAGES_INPUTS.items():
            if not client.is_model_ready(model):
                continue  # it serves pictures only
            with pytest.raises(InferenceServerException, match="own pipelines only"):
                client.infer(
                    model, infer_inputs(tritonclient.grpc, model, values), client_timeout=60
                )


def test_pipelines_still_reach_their_stages(strict_server):
    with Client(strict_server.url) as client:
        assert client.text2image("a ball", num_steps=1, width=16, height=16).media
