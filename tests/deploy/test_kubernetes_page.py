# SPDX-License-Identifier: Apache-2.0
"""docs/kubernetes.md names things that are there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()
OVERLAYS = ROOT / "deploy" / "kubernetes" / "overlays"


@pytest.fixture(scope="module")
def rendered():
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl on this machine to render overlays with")
    done = subprocess.run(["kubectl", "kustomize", OVERLAYS / "2b"], capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout


def test_every_overlay_is_described():
    assert set(re.findall(r"^\| `([\w-]+)` \| ", PAGE, re.MULTILINE)[:4]) == {p.name for p in OVERLAYS.iterdir()}  # fmt: skip


def test_commands_name_what_the_overlay_makes(rendered):
    documents = rendered.split("\n---\n")
    named = set(re.findall(r"\b(deployment|job|service)[ /](predict2[\w-]*)", PAGE))
    assert len(named) >= 5
    for kind, name in named:
        assert any(
            f"kind: {kind.capitalize()}\n" in d and f"\n  name: {name}\n" in d for d in documents
        ), (kind, name)
    for secret in re.findall(r"create secret \w+ (\S+)", PAGE):
        assert f"secretName: {secret}\n" in rendered or f"name: {secret}\n" in rendered, secret
    for label in re.findall(r"predict2-(?:client|gateway|monitoring)", PAGE):
        assert label in rendered


def test_files_that_are_named_exist():
    for path in re.findall(r"deploy/[\w./-]+\w", PAGE):
        assert (ROOT / path.removeprefix("../")).exists(), path
