# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from predict2_runtime.drain import RUN_FOLDER_VARIABLE
from predict2_runtime.policy import POLICY_VARIABLE, Policy
from predict2_runtime.server import tritonserver
from predict2_runtime.server.launch import Ports, server_command, server_environment
from predict2_runtime.server.tritonserver import Tritonserver, find_tritonserver
from predict2_spec.errors import ServerUnavailableError


def test_the_server_on_path_is_taken_as_it_is(tmp_path, monkeypatch):
    binary = tmp_path / "tritonserver"
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tritonserver(tmp_path) == Tritonserver(binary, None, None)


def test_the_wheels_server_gets_this_pythons_stub_and_library(tmp_path):
    found = find_tritonserver(tmp_path)
    assert (found.backends / "python" / "triton_python_backend_stub").is_file()
    first = Path(found.shared_libraries.split(":")[0])
    assert list(first.glob("libpython3*.so*"))


def test_without_any_server_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ServerUnavailableError, match=r"pip install 'cosmos-predict2-triton\[server\]'"
    ):
        find_tritonserver(tmp_path)


def test_a_numpy_that_crashes_the_stub_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(np, "__version__", "2.3.0")
    with pytest.raises(
        ServerUnavailableError, match=r"numpy 2\.3\.0 is installed; .*pip install 'num"
    ):
        find_tritonserver(tmp_path)


def test_a_python_without_shared_library_is_told_the_fix(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_config_var", lambda name: None)
    with pytest.raises(
        ServerUnavailableError, match=r"has no shared libpython.*apt-get install libp"
    ):
        find_tritonserver(tmp_path)


def test_an_unsupported_python_is_told_which_are_supported(tmp_path, monkeypatch):
    monkeypatch.setattr(tritonserver.sys, "version_info", SimpleNamespace(major=2, minor=7))
    with pytest.raises(ServerUnavailableError, match=r"Python 2\.7; use one of .*3\.11"):
        find_tritonserver(tmp_path)


def test_models_find_this_environment_through_the_first_python_on_path():
    environment = server_environment(
        Tritonserver(Path("t"), None, "/lib"), {"PATH": "/x"}, Path("/run"), Policy()
    )
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/x"
    assert environment["LD_LIBRARY_PATH"] == "/lib"


def test_memory_of_large_tensors_is_kept_unless_the_owner_says_otherwise(tmp_path):
    triton = Tritonserver(Path("t"), None, None)
    environment = server_environment(triton, {"MALLOC_TRIM_THRESHOLD_": "1"}, tmp_path, Policy())
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) > 30_000_000
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "1"


def test_a_container_keeps_its_own_environment(tmp_path):
    environment = server_environment(
        Tritonserver(Path("t"), None, None), {"PATH": "/x"}, tmp_path, Policy()
    )
    assert {k: v for k, v in environment.items() if not k.startswith("MALLOC_")} == {
        "PATH": "/x",
        RUN_FOLDER_VARIABLE: str(tmp_path),
        POLICY_VARIABLE: Policy().to_json(),
    }


def test_the_server_listens_where_it_is_told_and_nowhere_else(tmp_path):
    triton, ports = Tritonserver(Path("t"), None, None), Ports("127.0.0.1", 1, 2, 3)
    command = server_command(triton, tmp_path, ports, "prefix_", verbose=False)
    for name, port in (("http", 1), ("grpc", 2), ("metrics", 3)):
        assert f"--{name}-address=127.0.0.1" in command
        assert f"--{name}-port={port}" in command
    assert "--disable-auto-complete-config" in command
