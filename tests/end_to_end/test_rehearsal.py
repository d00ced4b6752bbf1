# SPDX-License-Identifier: Apache-2.0
"""An upgrade and a crash under load: deploy/rehearsal with the manifests' pauses made shorter."""

import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # deploy is installed nowhere

from deploy.rehearsal.rehearse import Rehearsal  # noqa: E402
from deploy.rehearsal.rules import read_rules  # noqa: E402

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def nginx():
    found = shutil.which("nginx") or ROOT / "build" / "tools" / "nginx" / "usr" / "sbin" / "nginx"
    if not Path(found).exists():
        pytest.skip("no nginx on this machine; the tests of the proxy fetch Debian's")
    return [str(found)]


@pytest.fixture(scope="module")
def phases(nginx, slim_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    return Rehearsal(nginx, slim_repository, folder, read_rules().quicker(10)).run()


def test_the_rules_are_the_manifests(nginx):
    rules = read_rules()
    assert rules.ready_path == "/v2/health/ready"
    assert rules.wait_before_stop_s >= rules.ready_every_s
    assert rules.grace_s > rules.wait_before_stop_s + rules.finish_s


def test_nobody_notices_an_upgrade_even_without_trying_again(phases):
    *upgrade, _ = phases
    assert len(upgrade) == 3
    for phase in upgrade:
        assert {asked.caller for asked in phase.asked} == {"quick 1", "quick 2", "long"}
        assert not phase.failed, phase.failed


def test_long_requests_outlive_their_lease_and_a_drain(phases):
    long = [asked for phase in phases[:3] for asked in phase.asked if asked.caller == "long"]
    assert any(asked.ended - asked.began > 2 for asked in long), "none outlasted its lease"


def test_a_crash_costs_what_ran_there_another_try_and_nothing_else(phases):
    crash = phases[-1]
    assert not crash.failed, crash.failed
    assert all(asked.began <= crash.killed_at for asked in crash.retried)
    assert len(crash.retried) <= 3  # one a caller
    assert {why for asked in crash.retried for why in asked.retries} <= {"ServerUnavailableError"}
