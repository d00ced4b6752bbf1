# SPDX-License-Identifier: Apache-2.0
import os
import socket
import sys

import pytest

from predict2_client import doctor
from predict2_client.cli import main


@pytest.fixture
def program(tmp_path, monkeypatch):
    """program(name, script): a command of that name, alone on PATH and beside this Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", os.fspath(folder))
    monkeypatch.setattr(sys, "executable", os.fspath(folder / "python"))

    def write(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


def installed(monkeypatch, **versions):
    def version(name):
        if name.replace("-", "_") not in versions:
            raise doctor.PackageNotFoundError(name)
        return versions[name.replace("-", "_")]

    monkeypatch.setattr(doctor, "version", version)


def by_what(findings):
    return {finding.what: finding for finding in findings}


def test_this_environment_is_fit_for_the_client():
    findings = by_what([doctor.python(), *doctor.packages(), *doctor.codecs()])
    assert {finding.status for finding in findings.values()} == {"ok"}
    assert {"python", "numpy", "tritonclient", "av", "pillow", "ffmpeg"} <= findings.keys()


def test_what_is_missing_or_too_old_comes_with_the_command_that_mends_it(monkeypatch, program):
    installed(monkeypatch, numpy="1.26.4", tritonclient="2.9.0", pillow="13.0", rich="15")
    findings = by_what(doctor.packages())
    assert findings["numpy"].status == "ok"
    assert str(findings["av"]).startswith("failed  av: isn't installed; run pip install 'av>=")
    assert "2.9.0 is too old" in findings["tritonclient"].said  # and not newer than 2.51, as text
    assert findings["tritonserver"].status == "warning"


def test_a_numpy_that_crashes_the_installed_server_is_found(monkeypatch):
    installed(monkeypatch, numpy="2.1.0", nvidia_pytriton="0.7.0")
    finding = by_what(doctor.packages())["numpy and tritonserver"]
    assert finding.status == "failed"
    assert "'numpy<2'" in finding.said


def test_an_ffmpeg_without_a_codec_is_a_warning_that_names_it(monkeypatch):
    monkeypatch.setattr(doctor, "_CODECS", (("h264", "r", "clips"), ("no-such", "w", "nothing")))
    (finding,) = doctor.codecs()
    assert finding.status == "warning"
    assert "no-such for nothing" in finding.said
    assert "h264" not in finding.said


def test_gpus_are_those_the_driver_names(program):
    assert doctor.gpu().status == "warning"  # there is no nvidia-smi
    program("nvidia-smi", "echo 'NVIDIA H200, 580.95, 143771 MiB, 9.0'")
    assert str(doctor.gpu()) == "ok      GPU: NVIDIA H200, 580.95, 143771 MiB, 9.0"


@pytest.mark.parametrize("script", ["echo driver mismatch >&2; exit 18", "true"])
def test_a_driver_that_names_no_gpu_fails(program, script):
    program("nvidia-smi", script)
    finding = doctor.gpu()
    assert finding.status == "failed"
    assert "mend the driver" in finding.said


def test_little_shared_memory_is_a_warning(monkeypatch, tmp_path):
    assert doctor.shared_memory().status == "ok"
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "none")
    assert doctor.shared_memory().status == "warning"
    assert "--shm-size" in doctor.shared_memory().said


def test_taken_ports_are_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(doctor, "PORTS", {"gRPC": port})
        assert f"gRPC {port}" in doctor.ports().said
        assert doctor.ports().status == "warning"
    assert doctor.ports().status == "ok"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_to_be_there_and_is_not_fails(capsys):
    url = f"127.0.0.1:{closed_port()}"
    assert main(["doctor", "--url", url]) == 1
    out = capsys.readouterr().out
    assert f"failed  server: none answers at {url}" in out
    assert "start predict2-serve" in out


SAID = """\
ok      tritonserver: /opt/tritonserver
warning engine guardrail_video: there is none: build it
failed  engine vae_decoder: vae_decoder was built for sm90, and this GPU is sm80; build it again here: predict2-export
something else
"""


def test_what_predict2_serve_finds_is_passed_on(program, tmp_path, capsys):
    program("predict2-serve", f"cat <<'END'\n{SAID}END\nexit 1".replace("cat", "/bin/cat"))
    url = f"127.0.0.1:{closed_port()}"
    assert main(["doctor", "--url", url, "--repository", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert all(line in out for line in SAID.splitlines()[:3])
    assert "something else" not in out
    assert "warning server" in out  # none need be there yet


def test_a_check_that_breaks_off_fails_with_its_last_words(program, tmp_path):
    program("predict2-serve", "echo no memory >&2; exit 3")
    (finding,) = doctor.served(tmp_path)
    assert finding.status == "failed"
    assert "ended with 3: no memory" in finding.said


def test_without_predict2_serve_a_repository_cannot_be_checked(program, tmp_path):
    (finding,) = doctor.served(tmp_path)
    assert finding.status == "warning"
    assert "isn't installed here" in finding.said
