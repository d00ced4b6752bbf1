# SPDX-License-Identifier: Apache-2.0
"""What the Kubernetes manifests take for granted of a server, asked of a real one."""

import http.client
import re
import urllib.request
from pathlib import Path

import pytest
import yaml

from predict2_export.shared_memory import shared_memory_bytes
from predict2_spec.presets import TOY

pytestmark = pytest.mark.server

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
_METRIC = re.compile(r"\b(?:nv|predict2)_[a-z0-9_]+")


@pytest.fixture(scope="module")
def container():
    """The base's own, before any overlay."""
    deployment = yaml.safe_load((KUBERNETES / "base" / "deployment.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_of_a_ready_server_passes(server, container, probe):
    asks = container[probe]["httpGet"]
    assert asks["port"] == "http"
    connection = http.client.HTTPConnection(server.http_url, timeout=30)
    try:
        connection.request("GET", asks["path"])
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def test_the_autoscaler_asks_for_metrics_that_are_there(server):
    file = KUBERNETES / "components" / "autoscaling" / "scaledobject.yaml"
    (trigger,) = yaml.safe_load(file.read_text())["spec"]["triggers"]
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    asked = set(_METRIC.findall(trigger["metadata"]["query"])) - {"predict2"}
    assert asked
    for name in asked:
        models = re.findall(rf'^{name}{{.*model="(\w+)"', text, re.MULTILINE)
        wanted = re.search(r'model=~"([^"]+)"', trigger["metadata"]["query"])[1].split("|")
        assert set(wanted) <= set(models)


def test_shared_memory_holds_no_more_than_is_planned(server, toy_repository, client, picture_png):
    client.video2world(prompt="a ball", image=picture_png, num_steps=1, return_frames=True)
    client.text2world(prompt="a ball", num_steps=1)
    instances = {
        path.parent.name: int(re.search(r"count: (\d+)", path.read_text())[1])
        for path in toy_repository.glob("*/config.pbtxt")
    }
    held = sum(region.stat().st_size for region in server.regions() if region.exists())
    assert 0 < held <= shared_memory_bytes(TOY, instances)
