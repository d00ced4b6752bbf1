# SPDX-License-Identifier: Apache-2.0
"""Grafana's dashboard as a file; its metrics are held against a live server in tests/end_to_end/test_observability.py."""

import json
from pathlib import Path

import pytest

DASHBOARD = Path(__file__).parents[2] / "deploy" / "observability" / "dashboard.json"


@pytest.fixture(scope="module")
def dashboard():
    return json.loads(DASHBOARD.read_text())


def test_panels_have_places_of_their_own(dashboard):
    taken = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_query_is_of_the_chosen_server(dashboard):
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            query = target["expr"]
            assert query.count("{") == query.count('{job="$job", instance=~"$instance"'), query


def test_the_servers_to_choose_from_are_found_by_a_metric_all_have(dashboard):
    variables = {v["name"]: v for v in dashboard["templating"]["list"]}
    assert variables.keys() == {"datasource", "job", "instance"}
    assert "predict2_build_info" in variables["job"]["definition"]
