# SPDX-License-Identifier: Apache-2.0
"""One running Triton: its command line, its environment, waiting for it and stopping it."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from predict2_spec.errors import ServerUnavailableError

from .tritonserver import Tritonserver


@dataclass(frozen=True)
class Ports:
    """Where the server listens."""

    address: str
    http: int
    grpc: int
    metrics: int


def server_command(
    triton: Tritonserver, repository: Path, ports: Ports, exit_timeout_s: int, verbose: bool
) -> list[str]:
    """The argument list that starts Triton; configuration files are taken as they are written."""
    command = [
        str(triton.binary),
        f"--model-repository={repository.resolve()}",
        "--disable-auto-complete-config",
        f"--http-address={ports.address}",
        f"--http-port={ports.http}",
        f"--grpc-address={ports.address}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={ports.address}",
        f"--metrics-port={ports.metrics}",
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--log-info={str(verbose).lower()}",
    ]
    if not Path(
        "/dev/nvidiactl"
    ).exists():  # no GPU: don't look for one, its absence reads like an error
        command += ["--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false"]
    if triton.backends:
        command.append(f"--backend-directory={triton.backends}")
    return command


def server_environment(triton: Tritonserver, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Triton's Python models see what this interpreter sees."""
    result = dict(environment)
    if triton.library_path:
        result["LD_LIBRARY_PATH"] = triton.library_path
        # The models' embedded Python ignores PYTHONPATH; it takes the first python3 on PATH for itself and
        # so finds the virtual environment that one belongs to.
        folder = str(Path(sys.executable).parent)
        result["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    return result


def start(command: list[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start Triton in a session of its own, so that Ctrl-C reaches us first and its models stop in order."""
    return subprocess.Popen(command, env=dict(environment), start_new_session=True)


def wait_until_ready(
    process: subprocess.Popen[bytes],
    ports: Ports,
    timeout_s: float,
    should_stop: Callable[[], bool],
) -> bool:
    """Wait for readiness; False when `should_stop` asked to give up first.

    Raises:
        ServerUnavailableError: Triton ended, or wasn't ready in time.
    """
    deadline = time.monotonic() + timeout_s
    url = f"http://{ports.address}:{ports.http}/v2/health/ready"
    while time.monotonic() < deadline:
        if should_stop():
            return False
        if process.poll() is not None:
            raise ServerUnavailableError(
                f"tritonserver ended with code {process.returncode} while starting; the lines above say why"
            )
        try:
            with urllib.request.urlopen(url, timeout=1):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise ServerUnavailableError(
        f"tritonserver wasn't ready after {timeout_s:g} s; give it longer with --start-timeout"
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End Triton and its model processes at once."""
    os.killpg(process.pid, 9)
    process.wait()
