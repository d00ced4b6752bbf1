# SPDX-License-Identifier: Apache-2.0
"""Prometheus's own promtool runs alerts.test.yaml over the rules."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "observability" / "alerts.yaml"
CASES = Path(__file__).parent / "alerts.test.yaml"
BUILT = ROOT / "build" / "tools" / "promtool"


@pytest.fixture(scope="session")
def promtool():
    """promtool(argument, ...) -> exit code and what it wrote."""
    program = BUILT if BUILT.is_file() else shutil.which("promtool")
    if program is None:
        pytest.skip(f"no promtool on PATH nor at {BUILT}; `make promtool` fetches Debian's")

    def run(*arguments):
        done = subprocess.run(
            [program, *map(str, arguments)], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def test_rules(promtool, cases):
    code, said = promtool("test", "rules", cases(RULES))
    assert code == 0, said


@pytest.fixture
def cases(tmp_path):
    """cases(rules) -> the path of the cases, over those rules."""

    def over(rules):
        path = tmp_path / "cases.yaml"
        path.write_text(CASES.read_text().replace("RULES", os.fspath(rules)))
        return path

    return over


def test_prometheus_takes_the_rules(promtool):
    code, said = promtool("check", "rules", RULES)
    assert code == 0, said


def alerts():
    return re.findall(r"- alert: (\w+)", RULES.read_text())


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_is_seen_to_fire_and_to_stay_silent(alert):
    text = CASES.read_text()
    cases = re.findall(rf"alertname: {alert}\b,? *(?:exp_alerts: \[\]|\n *exp_alerts:\n)", text)
    assert any("[]" in case for case in cases)
    assert any("[]" not in case for case in cases)


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_says_how_bad_it_is_what_happens_and_what_to_do(alert):
    block = RULES.read_text().partition(f"- alert: {alert}\n")[2].partition("- alert:")[0]
    assert re.search(r"severity: (critical|warning)", block)
    assert re.search(r"summary: .*\{\{ \$labels\.", block)
    assert re.search(r"action: .+\.", block)


def test_a_broken_rule_is_found(promtool, cases, tmp_path):
    broken = tmp_path / "alerts.yaml"
    broken.write_text(RULES.read_text().replace("predict2:stage_calls:rate10m == 0", "vector(0)"))
    assert promtool("test", "rules", cases(broken))[0] != 0
