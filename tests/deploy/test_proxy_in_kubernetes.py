# SPDX-License-Identifier: Apache-2.0
"""The proxy's upstream of Kubernetes by a real nginx: names that change, and calls about a request that stay together."""

import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from predict2_client.access import REQUEST_HEADER

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # deploy is installed nowhere

from deploy.rehearsal.proxy import Proxy  # noqa: E402

PODS = ("127.0.0.2", "127.0.0.3")
LEFT_S = 4.0  # until a pod that is gone is left: follow.sh looks every 2 s
# What Kubernetes' names would say: the addresses in a file.
GETENT = """#!/bin/sh
test "$*" = "ahostsv4 predict2-pods" || exit 2
while read -r address; do echo "$address STREAM predict2-pods"; echo "$address DGRAM"; done <{file}
"""


@pytest.fixture(scope="module")
def nginx():
    found = shutil.which("nginx") or ROOT / "build" / "tools" / "nginx" / "usr" / "sbin" / "nginx"
    if not Path(found).exists():
        pytest.skip("no nginx on this machine; the tests of the proxy fetch Debian's")
    return str(found)


class Names:
    """The addresses of predict2-pods."""

    def __init__(self, folder):
        self.file = folder / "addresses"
        program = folder / "getent"
        program.write_text(GETENT.format(file=self.file))
        program.chmod(0o755)

    def are(self, *addresses):
        new = self.file.with_suffix(".new")
        new.write_text("".join(f"{address}\n" for address in addresses))
        new.rename(self.file)


class Pod(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, name):
        self.name = name

    def ModelMetadata(self, request, context):  # noqa: N802
        return service_pb2.ModelMetadataResponse(name=self.name)


@pytest.fixture(scope="module")
def pods():
    """The port on which both listen."""
    with socket.socket() as probe:
        probe.bind((PODS[0], 0))
        port = probe.getsockname()[1]
    servers = []
    for address in PODS:
        servers.append(grpc.server(ThreadPoolExecutor(4)))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Pod(address), servers[-1])
        servers[-1].add_insecure_port(f"{address}:{port}")
        servers[-1].start()
    yield port
    for server in servers:
        server.stop(None).wait()


@pytest.fixture
def names(tmp_path):
    names = Names(tmp_path)
    names.are(*PODS)
    return names


@pytest.fixture
def running(nginx, names, pods, tmp_path):
    """(proxy, process of follow.sh)"""
    given, run = tmp_path / "given", tmp_path / "run"
    given.mkdir()
    run.mkdir()
    proxy = Proxy([nginx], given, "")
    environment = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NGINX": nginx,
        "PREDICT2_GIVEN": str(given), "PREDICT2_RUN": str(run),
    }  # fmt: skip
    command = ["sh", str(ROOT / "deploy" / "proxy" / "follow.sh"), "predict2-pods", str(pods)]
    log = tmp_path / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        yield proxy, process
    finally:
        process.terminate()
        assert process.wait(30) is not None, log.read_text()


@pytest.fixture
def ask(running):
    """ask(request id) -> the pod that answered."""
    proxy, _ = running
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(proxy.ca_file.read_bytes()),
        grpc.access_token_call_credentials(proxy.token),
    )
    with grpc.secure_channel(proxy.url, credentials) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def ask(request_id):
            time.sleep(0.025)  # the proxy allows a caller 50 calls a second
            headers = ((REQUEST_HEADER, request_id),) if request_id else ()
            message = service_pb2.ModelMetadataRequest(name="any")
            return stub.ModelMetadata(message, metadata=headers, timeout=10).name

        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:  # nginx starts
            try:
                ask("")
                break
            except grpc.RpcError:
                time.sleep(0.1)
        yield ask


def test_calls_about_a_request_reach_one_server_and_requests_reach_all(ask):
    served = {n: {ask(f"request-{n}") for _ in range(5)} for n in range(20)}
    assert all(len(by) == 1 for by in served.values()), served
    assert set().union(*served.values()) == set(PODS)


def test_calls_about_no_request_reach_all(ask):
    assert {ask("") for _ in range(30)} == set(PODS)


def test_a_server_that_goes_is_left_in_time_and_one_that_comes_is_found(ask, names):
    names.are(PODS[1])
    gone = time.monotonic()
    while time.monotonic() < gone + LEFT_S:  # calls under way all the time, none fails
        ask("some-request")
        ask("")
    assert {ask(f"request-{n}") for n in range(40)} == {PODS[1]}
    names.are(*PODS)
    time.sleep(3)
    assert {ask(f"request-{n}") for n in range(40)} == set(PODS)


def test_without_a_server_that_is_ready_it_says_so_and_goes_on(ask, names):
    names.are()
    time.sleep(LEFT_S)
    with pytest.raises(grpc.RpcError) as caught:
        ask("some-request")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "no server behind the proxy answers" in caught.value.details()
    names.are(*PODS)
    time.sleep(LEFT_S)
    assert ask("some-request") in PODS


def test_told_to_end_it_ends(ask, running):
    _, process = running
    process.terminate()
    assert process.wait(20) == 0
