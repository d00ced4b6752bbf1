# SPDX-License-Identifier: Apache-2.0
"""Getting perf_analyzer: found, made before, or refused in words; nothing here uses the network."""

from zipfile import ZipFile

import pytest

from benchmarks.serving.perf_analyzer import VERSION, ToolError, find


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Nothing on PATH, and no index for pip but a folder."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def executable(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_the_one_on_path_is_taken(tmp_path):
    program = executable(tmp_path / "bin" / "perf_analyzer")
    assert find(tmp_path / "tools") == program


def test_one_made_before_is_taken_again(tmp_path):
    program = executable(tmp_path / "tools" / f"perf_analyzer-{VERSION}" / "perf_analyzer")
    assert find(tmp_path / "tools") == program


def test_where_none_can_be_had_the_message_says_where_it_is_and_nothing_is_left(tmp_path):
    with pytest.raises(ToolError, match=r"PyPI's wheel can't be had: .*SDK container"):
        find(tmp_path / "tools")
    assert list((tmp_path / "tools").iterdir()) == []


def test_a_wheel_that_isnt_the_known_one_is_refused(tmp_path):
    name = f"tritonclient-{VERSION}-py3-none-manylinux1_x86_64.whl"
    info = f"tritonclient-{VERSION}.dist-info"
    with ZipFile(tmp_path / "wheels" / name, "w") as wheel:
        wheel.writestr(f"tritonclient-{VERSION}.data/data/bin/perf_analyzer", "#!/bin/sh\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tritonclient\nVersion: {VERSION}\n")  # fmt: skip
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-manylinux1_x86_64\n")  # fmt: skip
        wheel.writestr(f"{info}/RECORD", "")
    with pytest.raises(ToolError, match="DO NOT MATCH THE HASHES"):
        find(tmp_path / "tools")
