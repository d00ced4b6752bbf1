# SPDX-License-Identifier: Apache-2.0
import socket

import pytest

from predict2_runtime.repository import write_preset
from predict2_runtime.server import checks
from predict2_spec.errors import EngineMismatchError, ServerUnavailableError
from predict2_spec.manifest import MANIFEST_FILE, Manifest
from predict2_spec.presets import TOY


def test_a_missing_repository_says_how_to_make_one(tmp_path):
    with pytest.raises(EngineMismatchError, match="does not exist; make one with `predict2-export"):
        checks.check_repository(tmp_path / "none")


def test_a_file_is_no_repository(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineMismatchError, match="is a file, not a folder; make one with"):
        checks.check_repository(tmp_path / "file")


def test_an_empty_repository_says_so(tmp_path):
    with pytest.raises(EngineMismatchError, match="is empty; make one with"):
        checks.check_repository(tmp_path)


def test_a_folder_of_other_things_is_no_repository(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(EngineMismatchError, match="is no repository made by predict2-export"):
        checks.check_repository(tmp_path)


def test_an_engine_of_another_preset_is_found_before_triton_starts(tmp_path):
    write_preset(tmp_path, TOY)
    folder = tmp_path / "text_encoder" / "1"
    folder.mkdir(parents=True)
    manifest = Manifest("text_encoder", "0.6b", "onnxruntime", "fp32", "cpu", "", "", {}, {})
    (folder / MANIFEST_FILE).write_text(manifest.to_json())
    with pytest.raises(EngineMismatchError, match=r"of preset 0\.6b, the repository is for toy"):
        checks.check_repository(tmp_path)


def test_a_missing_stage_is_found_before_triton_starts(tmp_path):
    write_preset(tmp_path, TOY)
    with pytest.raises(EngineMismatchError, match=r"no engine in .*text_encoder.*: build one with"):
        checks.check_repository(tmp_path)


def test_a_taken_port_is_named_with_its_option():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ServerUnavailableError,
            match=rf"grpc-port {port} .* \(Address already in use\); .* with --grpc-port",
        ):
            checks.choose_ports("127.0.0.1", {"grpc-port": port})


def test_an_address_that_is_not_here_is_refused():
    with pytest.raises(ServerUnavailableError, match=r"on 192\.0\.2\.1 can.t be used"):
        checks.choose_ports("192.0.2.1", {"http-port": 8000})
    with pytest.raises(ServerUnavailableError, match=r"--address 192\.0\.2\.1 can.t be used"):
        checks.choose_ports("192.0.2.1", {"http-port": 0})


def test_a_port_given_twice_is_refused():
    free = checks.choose_ports("127.0.0.1", {"http-port": 0})["http-port"]
    with pytest.raises(ServerUnavailableError, match=f"grpc-port {free} .* with --grpc-port"):
        checks.choose_ports("127.0.0.1", {"http-port": free, "grpc-port": free})


def test_ports_that_are_chosen_are_free_and_no_two_the_same():
    asked = {"http-port": 0, "grpc-port": 0, "metrics-port": 0}
    for _ in range(100):
        chosen = checks.choose_ports("127.0.0.1", asked)
        assert len(set(chosen.values())) == 3
        assert checks.choose_ports("127.0.0.1", chosen) == chosen


def test_too_little_shared_memory_says_how_to_get_more(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(ServerUnavailableError, match="has 0 MiB free; the server needs 64"):
        checks.check_shared_memory()
