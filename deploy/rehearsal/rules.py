# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes does to a pod by our manifests, in numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOYMENT = Path(__file__).parents[1] / "kubernetes" / "base" / "deployment.yaml"


@dataclass(frozen=True)
class Rules:
    """Of the base's server; seconds."""

    ready_path: str
    ready_every_s: float
    wait_before_stop_s: float  # preStop
    finish_s: float  # predict2-serve --exit-timeout
    grace_s: float  # then the pod is killed

    def quicker(self, factor: float) -> "Rules":
        """The same with pauses that many times shorter; what requests need stays."""
        return Rules(
            self.ready_path,
            self.ready_every_s / factor,
            self.wait_before_stop_s / factor,
            self.finish_s,
            self.grace_s,
        )


def read_rules(path: Path = DEPLOYMENT) -> Rules:
    """The rules of a Deployment's manifest."""
    pod: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (finish,) = [a for a in container["args"] if a.startswith("--exit-timeout=")]
    program, wait = container["lifecycle"]["preStop"]["exec"]["command"]
    if program != "sleep":
        raise ValueError(f"preStop runs {program}, which isn't rehearsed; this knows sleep")
    return Rules(
        container["readinessProbe"]["httpGet"]["path"],
        float(container["readinessProbe"]["periodSeconds"]),
        float(wait),
        float(finish.partition("=")[2]),
        float(pod["terminationGracePeriodSeconds"]),
    )
