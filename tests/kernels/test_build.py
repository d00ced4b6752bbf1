# SPDX-License-Identifier: Apache-2.0
"""What CMake decides before anything is compiled."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPPED = "kernels are skipped, the Python packages still install"


def configure(folder, *options, **environment):
    """CMake's messages and, where it generated any, its compiler commands by file."""
    if shutil.which("cmake") is None or shutil.which("nvcc") is None:
        pytest.skip("no cmake or no nvcc")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("CUDA")}
    result = subprocess.run(
        ["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", *options],
        capture_output=True,
        text=True,
        timeout=300,
        env=clean | environment,
    )
    assert result.returncode == 0, result.stderr
    path = folder / "compile_commands.json"
    return result.stdout, json.loads(path.read_text()) if path.is_file() else []


def nvcc_that_says(version, folder):
    """A program that is nvcc in all but the version it tells."""
    major, minor, _ = version.split(".")
    told = f"s/release [0-9.]+, V[0-9.]+/release {major}.{minor}, V{version}/"
    path = folder / "nvcc"
    path.write_text(f'#!/bin/sh\n"{shutil.which("nvcc")}" "$@" | sed -E "{told}"\n')
    path.chmod(0o755)
    return path


def installed_tensorrt(major, folder):
    """A place where TensorRT's headers seem to be."""
    include = folder / "include"
    include.mkdir()
    (include / "NvInferRuntime.h").touch()
    parts = zip(("MAJOR", "MINOR", "PATCH"), (major, 2, 1), strict=True)
    text = "".join(f"#define TRT_{part}_ENTERPRISE {number}\n" for part, number in parts)
    (include / "NvInferVersion.h").write_text(text)
    return include


def architectures(commands):
    found = [re.findall(r"arch=compute_(\w+)", c["command"]) for c in commands]
    return {tuple(numbers) for numbers in found if numbers}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Configured with nothing said, TensorRT 10 installed: (where its headers are, messages, commands)."""
    folder = tmp_path_factory.mktemp("plain")
    include = installed_tensorrt(10, folder)
    return include, *configure(folder / "build", TENSORRT_ROOT=str(folder))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """The same for an architecture and warnings as errors asked for, TensorRT 11 installed."""
    folder = tmp_path_factory.mktemp("asked")
    include = installed_tensorrt(11, folder)
    environment = {"TENSORRT_ROOT": str(folder), "CUDAARCHS": "86"}
    return include, *configure(folder / "build", "-DPREDICT2_WERROR=ON", **environment)


def test_a_toolkit_that_does_not_know_hopper_skips_the_kernels(tmp_path):
    options = [f"-DCMAKE_CUDA_COMPILER={nvcc_that_says('11.8.89', tmp_path)}"]
    output, commands = configure(tmp_path / "build", *options)
    assert f"(found 11.8.89): {SKIPPED}" in output
    assert commands == []


def test_a_toolkit_that_does_not_know_blackwell_builds_for_the_others(tmp_path):
    options = [f"-DCMAKE_CUDA_COMPILER={nvcc_that_says('12.4.131', tmp_path)}"]
    output, commands = configure(tmp_path / "build", *options)
    assert SKIPPED not in output
    assert architectures(commands) == {("80", "89", "90a")}


def test_architectures_are_all_unless_some_are_asked_for(plain, asked):
    assert architectures(asked[2]) == {("86",)}
    version = re.search(r"identification is NVIDIA (\d+)\.(\d+)", plain[1])
    if (int(version[1]), int(version[2])) < (12, 8):
        pytest.skip("the toolkit does not know all")
    assert architectures(plain[2]) == {("80", "89", "90a", "100", "120")}


def test_warnings_are_errors_only_where_asked_for(plain, asked):
    assert not any("-Werror" in c["command"] for c in plain[2])
    for name in ("c_api.cpp", "plugin.cpp"):
        found = [c["command"] for c in asked[2] if c["file"].endswith(f"/{name}")]
        assert found
        assert all("-Werror" in command for command in found)


def test_plugins_are_built_for_both_majors_whichever_is_installed(plain, asked):
    for (include, output, commands), theirs, ours in ((plain, 10, 11), (asked, 11, 10)):
        sources = {theirs: f"{theirs} from {include} ({theirs}.2.1)", ours: f"{ours} from our own"}
        assert re.search(rf"plugins: {re.escape(sources[10])}.*, {re.escape(sources[11])}", output)
        for major in (10, 11):
            folder = f"objects_trt{major}.dir"
            found = [c["command"] for c in commands if folder in c["command"]]
            assert len(found) == 5
            assert all((f"-isystem {include}" in command) == (major == theirs) for command in found)
            define = f"-DPREDICT2_TENSORRT_MAJOR={major}"
            assert all((define in command) == (major == ours) for command in found)
