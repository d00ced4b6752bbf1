# SPDX-License-Identifier: Apache-2.0
import json
import socket

import pytest

from predict2_runtime.repository import write_preset
from predict2_runtime.server import cli
from predict2_spec.manifest import MANIFEST_FILE, Graph, Manifest
from predict2_spec.presets import TOY
from predict2_spec.tensors import served_stages


def manifest(network, **changes):
    graph = Graph("main.onnx", "", 4, {}, {})
    values = {"kind": "onnxruntime", "precision": "fp32", "device": "cpu", **changes}
    return Manifest(network, TOY.name, values["kind"], values["precision"], values["device"], "", "", {}, {"main": graph})  # fmt: skip


@pytest.fixture
def repository(tmp_path):
    """A repository whose engines are there by name and size."""
    folder = tmp_path / "toy"
    folder.mkdir()
    write_preset(folder, TOY)
    for stage in served_stages(TOY):
        place = folder / stage.name / "1"
        place.mkdir(parents=True)
        (place / "main.onnx").write_bytes(b"onnx")
        (place / MANIFEST_FILE).write_text(manifest(stage.name).to_json())
    return folder


@pytest.fixture
def check(repository, capsys):
    """check(option, ...) -> exit code, {what was checked: its line}."""

    def check(*options):
        ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
        code = cli.main([str(repository), "--check", *ports, *options])
        lines = capsys.readouterr().out.splitlines()
        assert {line.split()[0] for line in lines} <= {"ok", "warning", "failed"}
        return code, {line[8:].partition(":")[0]: line for line in lines}

    return check


def write(repository, network, **changes):
    path = repository / network / "1" / MANIFEST_FILE
    path.write_text(manifest(network, **changes).to_json())


def test_a_repository_that_would_start_is_said_engine_by_engine(check):
    code, lines = check()
    assert code == 0
    assert all(line.startswith("ok ") for line in lines.values())
    assert {f"engine {stage.name}" for stage in served_stages(TOY)} < lines.keys()
    assert "onnxruntime fp32 for cpu" in lines["engine vae_decoder"]
    assert "guardrails: blocklist, frames" in lines["policy"]


def test_all_that_would_fail_is_said_at_once(check, repository):
    (repository / "text_encoder" / "1" / "main.onnx").write_bytes(b"on")
    write(repository, "vae_encoder", device="cuda")
    write(repository, "vae_decoder", kind="abacus")
    write(repository, "video2world_denoiser", kind="torch", device="sm42")
    code, lines = check("--text-guard", "/nowhere")
    assert code == 1
    failed = {what for what, line in lines.items() if line.startswith("failed")}
    networks = ("text_encoder", "vae_encoder", "vae_decoder", "video2world_denoiser")
    assert failed == {*(f"engine {name}" for name in networks), "policy"}
    assert "has 2 bytes instead of 4" in lines["engine text_encoder"]
    assert "--device cpu" in lines["engine vae_encoder"]
    assert "abacus" in lines["engine vae_decoder"]
    assert "sm42" in lines["engine video2world_denoiser"]


def test_a_missing_frame_guard_is_a_warning_and_its_policy_fails(check, repository):
    folder = repository / "guardrail_video" / "1"
    for path in (*folder.iterdir(), folder, folder.parent):
        path.rmdir() if path.is_dir() else path.unlink()
    code, lines = check()
    assert lines["engine guardrail_video"].startswith("warning")
    assert lines["policy"].startswith("failed")
    assert code == 1
    assert check("--run-unguarded")[0] == 0


def test_a_taken_port_a_missing_command_and_trace_folder_are_said(check):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        trace = "/nowhere/trace.json"
        code, lines = check("--grpc-port", port, "--trace", trace, "--", "no-such-command")
    assert code == 1
    assert port in lines["ports"]
    assert "isn't there" in lines["traces"]
    assert "no-such-command" in lines["command"]


def test_another_presets_engine_and_a_folder_of_nothing_fail(check, repository):
    path = repository / "vae_decoder" / "1" / MANIFEST_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "preset": "2b-480p-16fps"}))
    code, lines = check()
    assert code == 1
    assert "2b-480p-16fps" in lines["repository"]
    (repository / "repository.json").unlink()
    code, lines = check()
    assert code == 1
    assert list(lines)[-1] == "repository"
