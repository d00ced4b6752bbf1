# SPDX-License-Identifier: Apache-2.0
"""One running Triton: its command line, its environment, its processes, waiting for it and stopping it."""

import contextlib
import ctypes
import http.client
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from predict2_runtime import drain
from predict2_runtime.door import WORD_VARIABLE
from predict2_runtime.policy import POLICY_VARIABLE, Policy
from predict2_spec.errors import ServerUnavailableError

from .checks import SHARED_MEMORY
from .tritonserver import Tritonserver

# Tensors of some megabytes come and go at every step. glibc would map and unmap each, and the kernel clear its pages
# anew: thousands of page faults a step at the size of a clip. In bytes, as mallopt(3) has them.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "268435456"}
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_TERMINATE_S = 20  # for Triton to end once nothing runs any more
# What Triton offers anyone who can reach it beside serving models: loading and unloading, the levels of its log and
# traces. Nobody needs it here, so it is put behind a key that nobody has.
_CLOSED = ("model-repository", "trace", "logging")
_SHARED_MEMORY = "shared-memory"  # any region of /dev/shm by its name, to read and to write
# Over HTTP Triton 2.51 allocates what the shape in a JSON body says before it looks at the model: a hundred bytes end
# the server. Over gRPC it doesn't.
_INFERENCE = "inference"
# A machine's http_proxy is not for what runs on the machine itself.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Ports:
    """Where the server listens."""

    address: str
    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True)
class Opened:
    """What the owner opened to callers beside the public models over gRPC."""

    shared_memory: bool = False
    http_inference: bool = False
    stage_calls: bool = False  # stages answer whoever calls them, past the guardrails


@dataclass(frozen=True)
class Server:
    """A started Triton and what is to be cleaned up after it."""

    process: subprocess.Popen[bytes]
    ports: Ports
    run_folder: Path
    shared_memory: str  # prefix of its regions' names


def start(
    triton: Tritonserver,
    repository: Path,
    ports: Ports,
    work_folder: Path,
    policy: Policy,
    *,
    verbose: bool,
    opened: Opened,
    tracing: Sequence[str] = (),
) -> Server:
    """Start Triton over a repository; `work_folder` lives as long as it.

    `tracing` are arguments of Triton's.
    """
    run_folder = work_folder / "run"
    run_folder.mkdir()
    shared_memory = f"predict2_{uuid4().hex}_"
    command = server_command(triton, repository, ports, shared_memory, verbose=verbose)
    command += [*restrictions(opened), *tracing]
    environment = server_environment(triton, os.environ, run_folder, policy)
    if not opened.stage_calls:
        environment[WORD_VARIABLE] = secrets.token_hex(32)
    # A session of its own: Ctrl-C reaches us first, and its models can be ended with it.
    process = subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=_end_with_parent
    )
    return Server(process, ports, run_folder, shared_memory)


def _end_with_parent() -> None:
    """In the child: should we be killed, Triton is told to stop, and its ports and models go with it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def server_command(
    triton: Tritonserver, repository: Path, ports: Ports, shared_memory: str, *, verbose: bool
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
        # a caller's machine that vanished without a word is noticed, in less than a minute
        "--grpc-keepalive-time=30000",
        "--grpc-keepalive-timeout=20000",
        f"--metrics-address={ports.address}",
        f"--metrics-port={ports.metrics}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory}",
        f"--log-info={str(verbose).lower()}",
    ]
    if not Path(
        "/dev/nvidiactl"
    ).exists():  # no GPU: don't look for one, its absence reads like an error
        command += ["--pinned-memory-pool-byte-size=0", "--allow-gpu-metrics=false"]
    if triton.backends:
        command.append(f"--backend-directory={triton.backends}")
    return command


def restrictions(opened: Opened) -> list[str]:
    """The arguments that close what callers have no business with, but for what is to be open."""
    closed = _CLOSED if opened.shared_memory else (*_CLOSED, _SHARED_MEMORY)
    by_http = closed if opened.http_inference else (*closed, _INFERENCE)
    key = f"key={secrets.token_hex(16)}"
    return [
        f"--http-restricted-api={','.join(by_http)}:{key}",
        f"--grpc-restricted-protocol={','.join(closed)}:{key}",
    ]


def server_environment(
    triton: Tritonserver, environment: Mapping[str, str], run_folder: Path, policy: Policy
) -> dict[str, str]:
    """The environment in which Triton's Python models see what this interpreter sees."""
    result = {
        **environment,
        **_MALLOC,
        **{name: environment[name] for name in _MALLOC if name in environment},
        drain.RUN_FOLDER_VARIABLE: str(run_folder),
        POLICY_VARIABLE: policy.to_json(),
    }
    if triton.shared_libraries:
        result["LD_LIBRARY_PATH"] = triton.shared_libraries
        # The models' embedded Python ignores PYTHONPATH; it takes the first python3 on PATH for itself and
        # so finds the virtual environment that one belongs to.
        folder = str(Path(sys.executable).parent)
        result["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    return result


def wait_until_ready(server: Server, timeout_s: float, should_stop: Callable[[], bool]) -> bool:
    """Wait for readiness; False when `should_stop` asked to give up first.

    Raises:
        ServerUnavailableError: Triton ended, or wasn't ready in time.
    """
    deadline = time.monotonic() + timeout_s
    url = f"http://{server.ports.address}:{server.ports.http}/v2/health/ready"
    while time.monotonic() < deadline:
        if should_stop():
            return False
        if server.process.poll() is not None:
            raise ServerUnavailableError(
                f"tritonserver ended with code {server.process.returncode} while starting; the lines above say why"
            )
        try:
            with _DIRECT.open(url, timeout=1):
                return True
        except (OSError, http.client.HTTPException):
            time.sleep(0.1)
    raise ServerUnavailableError(
        f"tritonserver wasn't ready after {timeout_s:g} s; give it longer with --start-timeout"
    )


def model_processes(server: Server) -> set[int]:
    """Process ids of the Python models: all that runs in the server's session but Triton itself."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        session, alive = _session(folder)
        if alive and session == server.process.pid:
            found.add(int(folder.name))
    return found - {server.process.pid}


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for its code doesn't."""
    return _session(Path("/proc") / str(pid))[1]


def _session(folder: Path) -> tuple[int, bool]:
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it ended just now
        return 0, False
    return int(fields[3]), fields[0] != "Z"


def stop(server: Server, timeout_s: float, now: Callable[[], bool]) -> None:
    """Let running requests finish, end Triton, and leave nothing of it behind.

    Args:
        server: what to stop.
        timeout_s: how long running requests get.
        now: asked again and again; when it says so, waiting is over.
    """
    with contextlib.suppress(OSError):  # a full disk must not keep it running
        drain.stop_taking(server.run_folder)
    _wait(timeout_s, lambda: now() or _ended(server) or not drain.count_running(server.run_folder))
    if not _ended(server) and not now():
        server.process.terminate()
        _wait(_TERMINATE_S, lambda: now() or _ended(server))
    for pid in model_processes(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _ended(server):
        server.process.kill()
    server.process.wait()
    for region in SHARED_MEMORY.glob(f"{server.shared_memory}*"):
        region.unlink(missing_ok=True)


def _ended(server: Server) -> bool:
    return server.process.poll() is not None


def _wait(timeout_s: float, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + timeout_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)
