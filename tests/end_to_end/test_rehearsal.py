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

# Two servers, a proxy and three callers want more than two busy cores give them within the manifests' pauses.
pytestmark = [pytest.mark.server, pytest.mark.slow]

NOTICED_S = 1.0


@pytest.fixture(scope="module")
def nginx():
    found = shutil.which("nginx") or ROOT / "build" / "tools" / "nginx" / "usr" / "sbin" / "nginx"
    if not Path(found).exists():
        pytest.skip("no nginx on this machine; the tests of the proxy fetch Debian's")
    return [str(found)]


@pytest.fixture(scope="module")
def rules():
    return read_rules().quicker(10)


@pytest.fixture(scope="module")
def phases(nginx, rules, slim_repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    return Rehearsal(nginx, slim_repository, folder, rules).run()


def test_the_rules_are_the_manifests(nginx):
    rules = read_rules()
    assert rules.ready_path == "/v2/health/ready"
    assert rules.wait_before_stop_s >= rules.ready_every_s
    assert rules.grace_s > rules.wait_before_stop_s + rules.finish_s


def test_nobody_notices_an_upgrade_even_without_trying_again(phases):
    *upgrade, _ = phases
    assert len(upgrade) == 2
    for phase in upgrade:
        assert {asked.caller for asked in phase.asked} == {"quick 1", "quick 2", "long"}
        assert not phase.failed, phase.failed


def test_long_requests_run_through_a_drain(phases, rules):
    long = [asked for phase in phases[:2] for asked in phase.asked if asked.caller == "long"]
    assert any(asked.ended - asked.began > rules.wait_before_stop_s for asked in long)


def test_a_crash_costs_what_ran_there_another_try_and_nothing_else(phases):
    crash = phases[-1]
    assert not crash.failed, crash.failed
    # or was sent into a connection that nginx had not seen close yet
    assert all(asked.began <= crash.killed_at + NOTICED_S for asked in crash.retried), crash
    assert len(crash.retried) <= 3  # one a caller
    assert {why for asked in crash.retried for why in asked.retries} <= {"ServerUnavailableError"}
