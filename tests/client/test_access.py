# SPDX-License-Identifier: Apache-2.0
"""TLS, tokens and the header that keeps a request's calls together, by both faces, on a real TLS server of gRPC's."""

import asyncio
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from predict2_client import AsyncClient, Client
from predict2_client.access import OPEN, REQUEST_HEADER, make_access
from predict2_client.cli import main
from predict2_spec.errors import InvalidRequestError, ServerUnavailableError
from predict2_spec.tracking import RequestState

TOKEN = "3f" * 32


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Lets one token in and remembers the headers of each call."""

    def __init__(self):
        self.seen = []

    def _let_in(self, context):
        headers = dict(context.invocation_metadata())
        self.seen.append(headers)
        if headers.get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "set PREDICT2_TOKEN")

    def ServerReady(self, request, context):  # noqa: N802
        self._let_in(context)
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelInfer(self, request, context):  # noqa: N802
        self._let_in(context)
        response = service_pb2.ModelInferResponse()
        response.outputs.add(name="state", datatype="BYTES", shape=[1])
        text = RequestState("unknown").to_json().encode()
        response.raw_output_contents.append(len(text).to_bytes(4, "little") + text)
        return response


def certificate(folder, name):
    key, path = folder / f"{name}.key", folder / f"{name}.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", path],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, path


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory):
    """(host:port, file of its authority, its servicer)"""
    folder, servicer = tmp_path_factory.mktemp("tls"), Servicer()
    key, path = certificate(folder, "server")
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    pair = (key.read_bytes(), path.read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"localhost:{port}", path, servicer
    server.stop(None).wait()


def look(face, url, request_id, **access):
    """What a face of the client does to look a request up."""
    if face is Client:
        with Client(url, **access) as client:
            return client.look(request_id)

    async def ask():
        async with AsyncClient(url, **access) as client:
            return await client.look(request_id)

    return asyncio.run(ask())


FACES = pytest.mark.parametrize("face", [Client, AsyncClient])


@FACES
def test_a_caller_with_the_authority_and_a_token_gets_in(face, encrypted):
    url, ca, servicer = encrypted
    assert look(face, url, "some-request", ca_file=ca, token=TOKEN).state == "unknown"
    headers = servicer.seen[-1]
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert headers[REQUEST_HEADER] == "some-request"


@FACES
@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_right_token_it_is_said_what_to_set(face, encrypted, token):
    url, ca, _ = encrypted
    with pytest.raises(InvalidRequestError, match="doesn't let this caller in: set PREDICT2_TOKEN"):
        look(face, url, "some-request", ca_file=ca, token=token)


@FACES
def test_a_server_of_another_authority_is_not_trusted(face, encrypted, tmp_path):
    url, _, servicer = encrypted
    _, stranger = certificate(tmp_path, "stranger")
    before = len(servicer.seen)
    with pytest.raises(ServerUnavailableError):
        look(face, url, "some-request", ca_file=stranger, token=TOKEN)
    assert len(servicer.seen) == before


def test_waiting_for_a_server_that_lets_nobody_in_ends_at_once(encrypted):
    url, ca, _ = encrypted
    with Client(url, ca_file=ca) as client, pytest.raises(InvalidRequestError):
        client.wait_until_ready(60)


@FACES
def test_a_token_never_crosses_a_network_in_the_clear(face):
    for url in ("example.org:8001", "127.example.org:8001", "localhost.example.org:8001"):
        with pytest.raises(InvalidRequestError, match="in the clear; use TLS"):
            face(url, token=TOKEN)
    face("127.0.0.1:8001", token=TOKEN)


@pytest.mark.parametrize("token", ["a b", "a\n", "ä", "x" * 5000])
def test_a_token_that_can_be_none_is_refused_without_repeating_it(token):
    with pytest.raises(InvalidRequestError) as caught:
        make_access("localhost:1", True, None, token)
    assert token not in str(caught.value)


def test_an_authority_that_can_not_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(InvalidRequestError, match=r"ca_file .*none\.pem can't be read"):
        make_access("localhost:1", True, tmp_path / "none.pem", "")
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(InvalidRequestError, match=r"key\.pem holds no certificate"):
        make_access("localhost:1", True, tmp_path / "key.pem", "")


def test_no_text_of_an_access_holds_its_token():
    assert TOKEN not in repr(make_access("localhost:1", True, None, TOKEN))
    assert OPEN.headers("") == ()


def test_the_command_line_takes_the_token_from_the_environment(encrypted, monkeypatch, capsys):
    url, ca, _ = encrypted
    words = ["ready", "--url", url, "--ca-file", str(ca), "--timeout", "60"]
    monkeypatch.setenv("PREDICT2_TOKEN", TOKEN)
    assert main(words) == 0
    monkeypatch.setenv("PREDICT2_TOKEN", "wrong")
    assert main(words) == 1
    assert "doesn't let this caller in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "--token", TOKEN])
