# SPDX-License-Identifier: Apache-2.0
"""What runs on a GPU machine in sections, shown on sections that need none."""

import json
import sys

import pytest

from benchmarks import gpu
from benchmarks.gpu import SECTIONS, Section, run, run_all


def section(name, code="", **how):
    return Section(name, ((sys.executable, "-c", code),), **how)


@pytest.fixture(autouse=True)
def notes(tmp_path, monkeypatch):
    path = tmp_path / "build" / "passed.json"
    monkeypatch.setattr(gpu, "DONE", path)
    return path


def test_what_passed_is_noted_and_isnt_run_again(tmp_path, monkeypatch, capfd):
    ran = tmp_path / "ran"
    code = f"open({str(ran)!r}, 'a').write('x')"
    monkeypatch.setattr(gpu, "SECTIONS", (section("a", code), section("b", "exit(3)")))
    assert gpu.main([]) == 1
    assert gpu.main([]) == 1
    assert ran.read_text() == "x"
    assert "FAILED b: exit code 3" in capfd.readouterr().err
    assert gpu.main(["a"]) == 0  # by its name, whatever was before
    assert ran.read_text() == "xx"


def test_other_sources_are_run_anew(notes, monkeypatch):
    assert run_all([section("a")]) == {}
    assert list(gpu.passed()) == ["a"]
    monkeypatch.setattr(gpu, "sources", lambda: "changed")
    assert gpu.passed() == {}


def test_notes_that_are_damaged_count_for_nothing(notes):
    notes.parent.mkdir(parents=True)
    for text in ("", "[]", json.dumps({"sources": 1})):
        notes.write_text(text)
        assert gpu.passed() == {}


def test_nothing_is_timed_when_the_kernels_are_wrong():
    sections = [
        section("test-kernels", "exit(1)", before_times=True),
        section("test-networks"),
        section("time-kernels"),
        section("level-fp8"),
    ]
    failures = run_all(sections)
    assert failures == {
        "test-kernels": "exit code 1",
        "time-kernels": "not run: test-kernels failed",
        "level-fp8": "not run: test-kernels failed",
    }


def test_a_section_that_takes_too_long_is_stopped():
    assert run(section("slow", "import time; time.sleep(60)"), limit_s=1) == "longer than 1 s"


def test_a_program_that_is_missing_leaves_its_section_out(capfd):
    assert run_all([section("sanitize", "exit(1)", needs="no-such-program")]) == {}
    assert "left out, there is no no-such-program" in capfd.readouterr().out


def test_a_pattern_names_every_section_that_it_fits_once(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    names = ("a-1", "b", "a-2")
    write = [f"open({str(ran)!r}, 'a').write({name!r})" for name in names]
    monkeypatch.setattr(gpu, "SECTIONS", tuple(map(section, names, write)))
    assert gpu.main(["a-*", "a-1"]) == 0
    assert ran.read_text() == "a-1a-2"


def test_what_uses_kernels_is_run_after_their_build(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    names = ("build", "time-a", "report")
    write = [f"open({str(ran)!r}, 'a').write({name + ' '!r})" for name in names]
    monkeypatch.setattr(gpu, "SECTIONS", tuple(map(section, names, write)))
    for name in ("report", "time-a", "time-a", "build"):  # built once, unless it is asked for
        assert gpu.main([name]) == 0
    assert ran.read_text() == "report build time-a time-a build "
    monkeypatch.setattr(gpu, "sources", lambda: "changed")
    assert gpu.main(["time-*"]) == 0
    assert ran.read_text().endswith("build build time-a ")


def test_an_unknown_section_is_refused(capsys):
    with pytest.raises(SystemExit):
        gpu.main(["time-nothing"])
    assert "time-nothing: no such section" in capsys.readouterr().err


def test_sections_have_names_of_their_own_and_start_with_what_must_be_right():
    names = [of.name for of in SECTIONS]
    assert len(set(names)) == len(names)
    assert not any(" " in name for name in names)
    first_time = next(i for i, name in enumerate(names) if name.startswith("time-"))
    assert all(SECTIONS.index(of) < first_time for of in SECTIONS if of.before_times)
