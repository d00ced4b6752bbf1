# SPDX-License-Identifier: Apache-2.0
"""A gRPC server that speaks Triton's protocol and answers from plain functions."""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from predict2_spec.results import Event, Failure, Metadata
from predict2_spec.tracking import RequestState

METADATA = Metadata(
    task="text2image",
    prompt="a ball",
    negative_prompt="",
    seed=3,
    guidance=4.0,
    num_steps=35,
    solver="ab2",
    width=64,
    height=48,
    num_frames=1,
    fps=0,
    media_type="image/jpeg",
    preset="toy",
    level="exact",
    precision="fp32",
    version="0.1.0",
)


def _text(value):
    return serialize_byte_tensor(np.array([value.encode()], dtype=np.object_)).item()


def _text_response(name, text):
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name=name, datatype="BYTES", shape=[1])
    response.raw_output_contents.append(_text(text))
    return response


def event_response(stage="denoise", step=1, of=2):
    """What the server sends after a step."""
    return _text_response("event", Event(stage, step, of, 0.5).to_json())


def failure_response(status, message, verdict=None):
    """What the server sends at the end of a stream that failed."""
    return _text_response("error", Failure(status, message, verdict).to_json())


def result_response(media=b"picture", metadata=METADATA, frames=None):
    """What the server sends at the end."""
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="media", datatype="UINT8", shape=[len(media)])
    response.raw_output_contents.append(media)
    response.outputs.add(name="metadata", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(_text(metadata.to_json()))
    if frames is not None:
        response.outputs.add(name="frames", datatype="UINT8", shape=frames.shape)
        response.raw_output_contents.append(frames.tobytes())
    return response


def state_response(state, result=None):
    """What `tracking` answers; `result` is added as it is to a fetch."""
    response = result or service_pb2.ModelInferResponse()
    response.outputs.add(name="state", datatype="BYTES", shape=[1])
    response.raw_output_contents.append(_text(state.to_json()))
    return response


def judgement_response(responses=("<answer>No</answer>",), score=1.0):
    """What the critic answers."""
    response = service_pb2.ModelInferResponse()
    response.outputs.add(name="responses", datatype="BYTES", shape=[len(responses)])
    response.raw_output_contents.append(b"".join(_text(text) for text in responses))
    response.outputs.add(name="score", datatype="FP64", shape=[1])
    response.raw_output_contents.append(np.float64(score).tobytes())
    return response


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`unary` answers a request, `critic` those to the critic, `stream` yields what a decoupled model sends.

    `tracking` answers for a request id and an action what is known of that request; None: there is no such model.
    All may abort.
    """

    def __init__(self):
        self.url = ""
        self.ready = True
        self.requests = []
        self.headers = {}
        # The caller went away before the answer was complete, or said that it would.
        self.ended_early = threading.Event()
        self.asked = []  # of tracking: (request id, action)
        self.unary = lambda request, context: result_response()
        self.critic = lambda request, context: judgement_response()
        self.stream = lambda request, context: iter((event_response(), result_response()))
        self.tracking = lambda request_id, action: state_response(RequestState("unknown"))

    def ServerReady(self, request, context):  # noqa: N802, the protocol's name
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ServerMetadata(self, request, context):  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelInfer(self, request, context):  # noqa: N802
        if request.model_name == "tracking":
            return self._track(request, context)
        answered = self._begin(request, context)
        model = self.critic if request.model_name == "critic" else self.unary
        answer = model(request, context)
        answered.set()
        return answer

    def ModelStreamInfer(self, requests, context):  # noqa: N802
        for request in requests:
            answered = self._begin(request, context)
            for answer in self.stream(request, context):
                if isinstance(answer, str):
                    yield service_pb2.ModelStreamInferResponse(error_message=answer)
                else:
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer)
            answered.set()

    def _track(self, request, context):
        if self.tracking is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'tracking'")
        asked = [
            deserialize_bytes_tensor(raw).item().decode() for raw in request.raw_input_contents
        ]
        self.asked.append(tuple(asked))
        if asked[1] == "cancel":
            self.ended_early.set()
        return self.tracking(*asked)

    def _begin(self, request, context):
        self.requests.append(request)
        self.headers = dict(context.invocation_metadata())
        answered = threading.Event()
        context.add_callback(lambda: answered.is_set() or self.ended_early.set())
        return answered


@pytest.fixture
def server():
    fake = FakeTriton()
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    running = grpc.server(ThreadPoolExecutor(16), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, running)
    fake.url = f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}"
    fake.stop = lambda: running.stop(0).wait()
    running.start()
    yield fake
    fake.stop()


@pytest.fixture
def respond():
    """The builders of responses, for tests of their own answers."""

    class Respond:
        event = staticmethod(event_response)
        failure = staticmethod(failure_response)
        judgement = staticmethod(judgement_response)
        result = staticmethod(result_response)
        state = staticmethod(state_response)
        metadata = METADATA

    return Respond
