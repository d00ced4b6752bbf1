# SPDX-License-Identifier: Apache-2.0
"""deploy/proxy/nginx.conf, run by a real nginx before a real server: TLS, tokens, limits, and who may ask what."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from predict2_client import wire
from predict2_spec.requests import Text2ImageRequest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
TOKEN = "0f" * 32
QUICK = Text2ImageRequest(prompt="a ball", num_steps=1, width=16, height=16)


@pytest.fixture(scope="session")
def nginx():
    """A real nginx: the machine's, or Debian's unpacked into the build folder."""
    if found := shutil.which("nginx"):
        return Path(found)
    folder = ROOT / "build" / "tools" / "nginx"
    binary = folder / "usr" / "sbin" / "nginx"
    if not binary.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for package in ("nginx", "nginx-core"):  # where Debian and Ubuntu have the program
            got = subprocess.run(
                ["apt-get", "download", package], cwd=folder, capture_output=True, check=False
            ) if shutil.which("apt-get") else None  # fmt: skip
            for deb in folder.glob(f"{package}_*.deb"):
                subprocess.run(["dpkg", "-x", deb, folder], check=True)
            if got and binary.exists():
                break
    if not binary.exists() or subprocess.run([binary, "-v"], check=False).returncode:
        pytest.skip("no nginx on this machine, and none could be had from its Debian mirror")
    return binary


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def proxy(nginx, server, tmp_path_factory):
    """The shipped configuration with this test's ports; host:port, and the certificate that callers trust."""
    folder, port = tmp_path_factory.mktemp("proxy"), free_port()
    text = (ROOT / "deploy" / "proxy" / "nginx.conf").read_text()
    assert text.count("listen 8443") == 1
    text = text.replace("listen 8443", f"listen 127.0.0.1:{port}")
    (folder / "upstream.conf").write_text(f"server {server.url};\n")
    (folder / "tokens.map").write_text(f'"Bearer {TOKEN}" robot-lab;\n')
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "server.key",
         "-out", folder / "server.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    (folder / "nginx.conf").write_text(text)
    log = folder / "log.txt"
    command = [nginx, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while not listens(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"localhost:{port}", (folder / "server.crt").read_bytes(), log
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def stub(proxy):
    """stub(token): Triton's service through the proxy, as the caller with that token."""
    address, certificate, _ = proxy
    channels = []

    def stub(token=TOKEN, certificate=certificate):
        credentials = grpc.ssl_channel_credentials(certificate)
        if token:
            credentials = grpc.composite_channel_credentials(
                credentials, grpc.access_token_call_credentials(token)
            )
        channels.append(grpc.secure_channel(address, credentials))
        return service_pb2_grpc.GRPCInferenceServiceStub(channels[-1])

    yield stub
    for channel in channels:
        channel.close()


def test_a_caller_with_a_token_gets_what_it_asks_for(stub):
    assert stub().ServerReady(service_pb2.ServerReadyRequest(), timeout=60).ready
    answer = stub().ModelInfer(wire.infer_request(QUICK, "text2image"), timeout=60)
    assert wire.read_response(answer).media


def test_progress_comes_through_as_it_happens(stub):
    message = wire.infer_request(QUICK, "generate")
    answers = list(stub().ModelStreamInfer(iter((message,)), timeout=60))
    assert len(answers) > 2
    assert all(not answer.error_message for answer in answers)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "0", "Bearer " + TOKEN])
def test_nobody_else_is_served(stub, token):
    with pytest.raises(grpc.RpcError) as caught:
        stub(token).ModelInfer(wire.infer_request(QUICK, "text2image"), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "PREDICT2_TOKEN" in caught.value.details()


def test_what_callers_do_not_need_is_not_there(stub):
    asks = (
        lambda s: s.RepositoryIndex(service_pb2.RepositoryIndexRequest(), timeout=60),
        lambda s: s.SystemSharedMemoryStatus(service_pb2.SystemSharedMemoryStatusRequest(), timeout=60),
        lambda s: s.LogSettings(service_pb2.LogSettingsRequest(), timeout=60),
    )  # fmt: skip
    for ask in asks:
        with pytest.raises(grpc.RpcError) as caught:
            ask(stub())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stranger_certificate_is_not_trusted(stub, proxy, tmp_path):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
         "/CN=localhost", "-keyout", tmp_path / "k", "-out", tmp_path / "c"], check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(grpc.RpcError) as caught:
        stub(certificate=(tmp_path / "c").read_bytes()).ServerReady(
            service_pb2.ServerReadyRequest(), timeout=10
        )
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_old_tls_and_no_tls_are_refused(proxy):
    host, _, port = proxy[0].rpartition(":")
    context = ssl.create_default_context(cadata=proxy[1].decode())
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((host, int(port)), 10) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        assert tls.version() == "TLSv1.2"
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"400" in raw.recv(200)


def test_an_upload_that_is_too_large_is_told_so(stub):
    message = wire.infer_request(QUICK, "text2image")
    message.raw_input_contents.append(bytes(80 * 2**20))
    with pytest.raises(grpc.RpcError) as caught:
        stub().ModelInfer(message, timeout=60)
    assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE)


def test_half_open_connections_do_not_keep_others_out(stub, proxy):
    host, _, port = proxy[0].rpartition(":")
    silent = [socket.create_connection((host, int(port)), 10) for _ in range(100)]
    try:
        assert stub().ServerReady(service_pb2.ServerReadyRequest(), timeout=60).ready
    finally:
        for connection in silent:
            connection.close()


def test_a_caller_that_asks_too_often_is_told_to_wait(stub):
    codes = []

    def ask():
        ready = stub()
        for _ in range(100):
            try:
                ready.ServerReady(service_pb2.ServerReadyRequest(), timeout=60)
            except grpc.RpcError as error:
                codes.append((error.code(), error.details()))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes
    assert all(code is grpc.StatusCode.UNAVAILABLE and "busy" in words for code, words in codes)


def test_no_token_is_in_any_log(proxy, stub):
    with pytest.raises(grpc.RpcError):
        stub("a-wrong-token-of-somebody").ServerReady(service_pb2.ServerReadyRequest(), timeout=60)
    logs = proxy[2].read_text()
    assert "robot-lab" in logs
    assert TOKEN not in logs
    assert "a-wrong-token" not in logs
