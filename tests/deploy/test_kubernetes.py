# SPDX-License-Identifier: Apache-2.0
"""Every overlay renders, fits the schemas of Kubernetes, and keeps the rules that a rollout of ours lives by."""

import copy
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from predict2_client.exchange import DEFAULT_LEASE_S
from predict2_export.shared_memory import shared_memory_bytes
from predict2_spec.presets import find_preset

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
OBSERVABILITY = ROOT.parent / "observability"
FOLLOW = ROOT.parent / "proxy" / "follow.sh"
OVERLAYS = sorted(path.name for path in (ROOT / "overlays").iterdir())
RELEASES = ("1.33", "1.35", "1.37")
MINUTES = 60
# The longest request of an overlay's preset in seconds, as the original publishes them for an H100, and some.
LONGEST_REQUEST_S = {"toy": 10, "2b": 5 * MINUTES, "2b-spare": 5 * MINUTES, "14b": 20 * MINUTES}

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="there is no kubectl on this machine to render overlays with",
)


@functools.cache
def rendered(overlay):
    """What `kubectl apply -k` would send."""
    done = subprocess.run(
        ["kubectl", "kustomize", ROOT / "overlays" / overlay],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(overlay, *kinds):
    return [document for document in rendered(overlay) if document["kind"] in kinds]


def workloads(overlay):
    return of_kind(overlay, "Deployment", "Job")


def pods(overlay):
    """(name, pod spec) of each workload."""
    return [(w["metadata"]["name"], w["spec"]["template"]["spec"]) for w in workloads(overlay)]


def containers(overlay):
    return [
        (f"{name}/{container['name']}", container)
        for name, pod in pods(overlay)
        for container in [*pod.get("initContainers", []), *pod["containers"]]
    ]


def server(overlay):
    """The pod spec and the container of the server."""
    pod = dict(pods(overlay))["predict2"]
    (container,) = pod["containers"]
    return pod, container


def option(container, name):
    (found,) = [arg for arg in container["args"] if arg.startswith(f"--{name}=")]
    return found.partition("=")[2]


def custom_schema(document):
    group, _, version = document["apiVersion"].partition("/")
    path = ROOT / "schemas" / f"{document['kind'].lower()}.{group}-{version}.json"
    return json.loads(path.read_text()) if path.exists() else None


def validate(document, release):
    """Against the project's own schema for a custom resource, else against that release's."""
    if schema := custom_schema(document):
        jsonschema.Draft202012Validator(schema).validate(document)
    else:  # raises for a kind that the release hasn't
        kubernetes_validate.validate(document, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_resources_fit_the_schemas(overlay, release):
    for document in rendered(overlay):
        validate(document, release)


def test_a_misspelt_field_and_a_removed_kind_would_be_found():
    deployment = copy.deepcopy(of_kind("toy", "Deployment")[0])
    probe = deployment["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    probe["failureTreshold"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment, RELEASES[0])
    removed = {
        "apiVersion": "autoscaling/v2beta2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "x"},
    }
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        validate(removed, RELEASES[0])
    scaled = copy.deepcopy(of_kind("14b", "ScaledObject")[0])
    scaled["spec"]["maxReplicas"] = 3
    with pytest.raises(jsonschema.ValidationError):
        validate(scaled, RELEASES[0])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_have_a_release_and_containers_their_bounds(overlay):
    for name, container in containers(overlay):
        tag = container["image"].rpartition(":")[2]
        assert re.match(r"\d+\.\d+", tag), (name, container["image"])
        resources = container["resources"]
        assert resources["requests"].keys() >= {"cpu", "memory"}, name
        assert "memory" in resources["limits"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_runs_restricted(overlay):
    (namespace,) = {
        d["metadata"].get("namespace") for d in rendered(overlay) if d["kind"] != "Namespace"
    }
    (made,) = of_kind(overlay, "Namespace")
    assert made["metadata"]["name"] == namespace
    assert made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys(), name
        allowed = {"persistentVolumeClaim", "emptyDir", "projected", "configMap", "secret"}
        for volume in pod["volumes"]:
            assert volume.keys() - {"name"} <= allowed, (name, volume)
    for name, container in containers(overlay):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_meet_what_they_mean(overlay):
    labels = [w["spec"]["template"]["metadata"]["labels"] for w in workloads(overlay)]

    def meets(selector):
        return any(selector.items() <= of.items() for of in labels)

    for service in of_kind(overlay, "Service"):
        assert meets(service["spec"]["selector"]), service["metadata"]["name"]
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for document in of_kind(overlay, kind):
            selector = document["spec"].get("selector") or document["spec"]["podSelector"]
            assert meets(selector["matchLabels"]), document["metadata"]["name"]
    for deployment in of_kind(overlay, "Deployment"):
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert sum(selector.items() <= of.items() for of in labels) == 1, (
            "a selector takes others' pods"
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_claims_secrets_and_config_maps_are_there_or_said_to_be_made(overlay):
    made = {(d["kind"], d["metadata"]["name"]) for d in rendered(overlay)}
    text = "".join(path.read_text() for path in ROOT.parent.rglob("kustomization.yaml"))
    for name, pod in pods(overlay):
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in made, name
            for source in volume.get("projected", {}).get("sources", []):
                if "configMap" in source:
                    assert ("ConfigMap", source["configMap"]["name"]) in made, name
    secrets = set(re.findall(r'"secretName": "([^"]+)"', json.dumps(rendered(overlay))))
    secrets |= {
        source["secret"]["name"]
        for _, pod in pods(overlay)
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        if "secret" in source
    }
    for secret in secrets:
        assert re.search(rf"kubectl create secret \S+ {secret} ", text), secret


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_secret_is_written_down(overlay):
    assert not of_kind(overlay, "Secret")
    for name, container in containers(overlay):
        for variable in container.get("env", []):
            if re.search("TOKEN|KEY|PASSWORD", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_are_the_servers(overlay):
    _, container = server(overlay)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {
        name: int(option(container, f"{name}-port")) for name in ("http", "grpc", "metrics")
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] in ports
    for service in of_kind(overlay, "Service"):
        if (
            service["metadata"]["name"].startswith("predict2")
            and "proxy" not in service["metadata"]["name"]
        ):
            for port in service["spec"]["ports"]:
                assert port["port"] == ports[port["targetPort"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_start_may_take_as_long_as_the_server_says(overlay):
    _, container = server(overlay)
    probe = container["startupProbe"]
    allowed_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert allowed_s >= int(option(container, "start-timeout")) >= 25 * MINUTES
    (deployment,) = [
        d for d in of_kind(overlay, "Deployment") if d["metadata"]["name"] == "predict2"
    ]
    assert deployment["spec"]["progressDeadlineSeconds"] > allowed_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_stop_leaves_running_requests_their_time(overlay):
    pod, container = server(overlay)
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drains = int(option(container, "exit-timeout"))
    assert drains >= LONGEST_REQUEST_S[overlay]
    ends_in_order_s = 20 + 10  # Triton's own end, as predict2-serve waits for it, and the rest
    assert pod["terminationGracePeriodSeconds"] >= waits + drains + ends_in_order_s


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_server_ends_after_the_proxy_left_it_and_before_leases_do(overlay):
    """Who renews a lease no longer reaches a server that is to end; told to end, it doesn't look at leases."""
    _, container = server(overlay)
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    looks = int(re.search(r"^  sleep (\d+)", FOLLOW.read_text(), re.MULTILINE)[1])
    dns_cache = 5  # CoreDNS's, of Kubernetes' names
    assert waits > dns_cache + looks
    assert waits < DEFAULT_LEASE_S * 2 / 3  # it is renewed every third of it


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_proxy_knows_every_server_that_is_ready(overlay):
    (proxy,) = dict(pods(overlay))["predict2-proxy"]["containers"]
    _, script, name, port = proxy["command"]
    (found,) = [c for c in of_kind(overlay, "ConfigMap") if "nginx.conf" in c["data"]]
    assert script == "/etc/predict2/follow.sh"
    assert found["data"]["follow.sh"] == FOLLOW.read_text()
    (service,) = [s for s in of_kind(overlay, "Service") if s["metadata"]["name"] == name]
    assert int(port) in {p["port"] for p in service["spec"]["ports"]}
    assert service["spec"]["clusterIP"] == "None"
    assert not service["spec"].get("publishNotReadyAddresses")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_upgrade_can_go_forward(overlay):
    """Neither a surge without a GPU for it nor a budget that lets nobody go."""
    (deployment,) = [
        d for d in of_kind(overlay, "Deployment") if d["metadata"]["name"] == "predict2"
    ]
    update = deployment["spec"]["strategy"]["rollingUpdate"]
    spare = overlay in ("toy", "2b-spare")
    assert (update["maxSurge"], update["maxUnavailable"]) == ((1, 0) if spare else (0, 1))
    for budget in of_kind(overlay, "PodDisruptionBudget"):
        least = budget["spec"].get("minAvailable", 0)
        name = budget["metadata"]["name"]
        (of,) = [d for d in of_kind(overlay, "Deployment") if d["metadata"]["name"] == name]
        assert least < of["spec"]["replicas"] or "maxUnavailable" in budget["spec"], name


@pytest.mark.parametrize("overlay", [o for o in OVERLAYS if o != "toy"])
def test_real_presets_ask_for_a_gpu_and_go_where_there_is_one(overlay):
    for name, pod in pods(overlay):
        wants = [c for c in pod["containers"] if "nvidia.com/gpu" in c["resources"]["limits"]]
        assert bool(wants) == (name in ("predict2", "predict2-build")), name
        if wants:
            assert any(t["key"] == "nvidia.com/gpu" for t in pod["tolerations"]), name
            assert pod["affinity"]["nodeAffinity"], name
    engines = {
        v["value"]
        for _, c in containers(overlay)
        for v in c.get("env", [])
        if v["name"] == "PREDICT2_ENGINES"
    }
    assert len(engines) == 1, f"built in one folder, served from another: {engines}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_shared_memory_is_memory_and_counted(overlay):
    pod, container = server(overlay)
    (shm,) = [v for v in pod["volumes"] if v["name"] == "shm"]
    assert shm["emptyDir"]["medium"] == "Memory"
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    room = gibibytes(shm["emptyDir"]["sizeLimit"])
    assert room < gibibytes(container["resources"]["limits"]["memory"]) / 2
    planned = shared_memory_bytes(find_preset(preset(overlay)), installed_instances())
    assert planned <= room * 2**30


def preset(overlay):
    """What its jobs fetch and build; the toy has none."""
    found = {
        v["value"]
        for _, c in containers(overlay)
        for v in c.get("env", [])
        if v["name"] == "PREDICT2_PRESET"
    }
    (name,) = found or {"toy"}
    return name


def installed_instances():
    """Processes of each model, as configurations say that get installed."""
    return {
        path.parent.name: int(re.search(r"instance_group \[ \{ count: (\d+)", path.read_text())[1])
        for path in (ROOT.parents[1] / "model_repository").glob("*/config.pbtxt")
    }


def gibibytes(text):
    return float(text.removesuffix("Gi"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_servers_reach_nothing_but_names(overlay):
    (policy,) = [
        p for p in of_kind(overlay, "NetworkPolicy") if p["metadata"]["name"] == "predict2"
    ]
    assert sorted(policy["spec"]["policyTypes"]) == ["Egress", "Ingress"]
    ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}
    assert ports == {53}


@pytest.mark.parametrize("overlay", [o for o in OVERLAYS if o not in ("toy", "2b")])
def test_servers_are_added_for_requests_that_wait(overlay):
    (scaled,) = of_kind(overlay, "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    assert "nv_inference_pending_request_count" in trigger["metadata"]["query"]
    assert scaled["spec"]["scaleTargetRef"]["name"] == "predict2"
    assert scaled["spec"]["minReplicaCount"] >= 1
    assert f'{{namespace="{scaled["metadata"]["namespace"]}", ' in trigger["metadata"]["query"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_scraped_is_a_port_of_a_service_by_the_job_that_alerts_know(overlay):
    (monitor,) = of_kind(overlay, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [
        s for s in of_kind(overlay, "Service") if wanted <= s["metadata"].get("labels", {}).items()
    ]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    job = {"targetLabel": "job", "replacement": "predict2"}
    assert job in endpoint["relabelings"]
    (rules,) = of_kind(overlay, "PrometheusRule")
    assert 'up{job="predict2"}' in json.dumps(rules).replace("\\", "")


def test_the_cluster_gets_the_rules_that_are_tested():
    made = subprocess.run(
        ["sh", OBSERVABILITY / "make_rule.sh"], capture_output=True, text=True, check=True
    ).stdout
    file = OBSERVABILITY / "prometheusrule.yaml"
    assert file.read_text() == made, f"run {OBSERVABILITY}/make_rule.sh >{file}"
    tested = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())
    assert yaml.safe_load(made)["spec"]["groups"] == tested["groups"]


def test_the_cluster_gets_the_dashboard_that_is_tested():
    (found,) = [c for c in of_kind("toy", "ConfigMap") if "dashboard.json" in c["data"]]
    assert found["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert found["data"]["dashboard.json"] == (OBSERVABILITY / "dashboard.json").read_text()
