# SPDX-License-Identifier: Apache-2.0
"""`predict2 doctor`: what this machine has and lacks, a line a check, each with the way out."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from predict2_spec.tensors import MODELS

from .access import OPEN, Access

Status = Literal["ok", "warning", "failed"]

DISTRIBUTION = "cosmos-predict2-triton"
PORTS = {
    "HTTP": 8000,
    "gRPC": 8001,
    "metrics": 8002,
}  # those of predict2-serve, unless told otherwise
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MEMORY = 64 * 2**20  # bytes; the least that predict2-serve starts with
_OLDEST_PYTHON = (3, 11)
_TIMEOUT_S = 5.0  # of one question to the server or the driver
_CHECK_TIMEOUT_S = 120.0
# codec, r for reading or w for writing, for what
_CODECS: tuple[tuple[str, Literal["r", "w"], str], ...] = (
    ("libx264", "w", "writing clips, which the server does"),
    ("h264", "r", "reading clips"),
    ("hevc", "r", "reading clips that phones make"),
    ("vp9", "r", "reading webm clips"),
    ("av1", "r", "reading AV1 clips"),
)
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([\d.]+)")


@dataclass(frozen=True)
class Finding:
    """What one check came to: what is there, or what is wrong and the way out."""

    status: Status
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.status:8}{self.what}: {self.said}"


def examine(url: str, repository: Path | None, access: Access = OPEN) -> Iterator[Finding]:
    """All checks, one after the other.

    Args:
        url: host:port of a server's gRPC.
        repository: a folder that is to be served; with one, no server need be there yet.
        access: how to get in.
    """
    yield python()
    yield from packages()
    yield from codecs()
    yield shared_memory()
    yield gpu()
    yield from server(url, access, expected=repository is None)
    yield ports()
    if repository is not None:
        yield from served(repository)


def python() -> Finding:
    """The interpreter."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _OLDEST_PYTHON:
        return Finding(
            "failed", "python", f"{found} is too old; use 3.11, which this was tested with"
        )
    return Finding("ok", "python", f"{found} at {sys.executable}")


def packages() -> Iterator[Finding]:
    """What the client needs is there and new enough, and numpy fits the server that is installed."""
    for line in requires(DISTRIBUTION) or ():
        if ";" not in line and (wanted := _REQUIREMENT.match(line)):
            yield _package(*wanted.groups())
    server_version = _version("nvidia-pytriton")
    numpy = _version("numpy")
    if server_version and numpy and _numbers(numpy) >= (2,):
        yield Finding("failed", "numpy and tritonserver", f"numpy {numpy} crashes the Python backend of nvidia-pytriton {server_version}; run pip install 'numpy<2'")  # fmt: skip
    elif server_version:
        yield Finding("ok", "tritonserver", f"of nvidia-pytriton {server_version}, and numpy {numpy} fits it")  # fmt: skip
    elif found := shutil.which("tritonserver"):
        yield Finding("ok", "tritonserver", found)
    else:
        yield Finding("warning", "tritonserver", f"none is installed, so nothing can be served from here; pip install '{DISTRIBUTION}[server]'")  # fmt: skip


def _package(name: str, least: str) -> Finding:
    found = _version(name)
    if found is None or _numbers(found) < _numbers(least):
        here = "isn't installed" if found is None else f"{found} is too old"
        return Finding("failed", name, f"{here}; run pip install '{name}>={least}'")
    return Finding("ok", name, found)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def codecs() -> Iterator[Finding]:
    """The ffmpeg inside PyAV can do what clips need."""
    try:
        import av
        from av.codec import Codec
    except ImportError as error:
        yield Finding("failed", "ffmpeg", f"PyAV can't be loaded ({error}); run pip install --force-reinstall av")  # fmt: skip
        return
    missing = []
    for name, mode, use in _CODECS:
        try:
            Codec(name, mode)
        except (ValueError, av.FFmpegError):
            missing.append(f"{name} for {use}")
    if missing:
        yield Finding("warning", "ffmpeg", f"PyAV {av.__version__} lacks {'; '.join(missing)}. PyPI's wheels have them all")  # fmt: skip
    else:
        names = ", ".join(name for name, _, _ in _CODECS)
        yield Finding("ok", "ffmpeg", f"of PyAV {av.__version__}, with {names}")


def shared_memory() -> Finding:
    """Room for tensors on their way from model to model; only a server needs it."""
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    said = f"{SHARED_MEMORY} has {free // 2**20} MiB free"
    if free < MIN_SHARED_MEMORY:
        return Finding("warning", "shared memory", f"{said}, a server needs {MIN_SHARED_MEMORY // 2**20}; in a container give it more (docker run --shm-size=1g)")  # fmt: skip
    return Finding("ok", "shared memory", said)


def gpu() -> Finding:
    """What the driver says of its GPUs."""
    asked = "--query-gpu=name,driver_version,memory.total,compute_cap"
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("warning", "GPU", "no nvidia-smi, so no driver; engines for the CPU run, those for GPUs don't")  # fmt: skip
    try:
        done = subprocess.run([program, asked, "--format=csv,noheader"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("failed", "GPU", f"nvidia-smi doesn't answer ({error}); see dmesg, restart the driver")  # fmt: skip
    said = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    if done.returncode or not said:
        why = " ".join((done.stderr or done.stdout).split()) or "it names no GPU"
        return Finding("failed", "GPU", f"nvidia-smi: {why}; mend the driver, or give the container its GPUs")  # fmt: skip
    return Finding("ok", "GPU", said)


def server(url: str, access: Access = OPEN, *, expected: bool) -> Iterator[Finding]:
    """Whether a server answers, what it is, and which models are ready."""
    import tritonclient.grpc
    from tritonclient.utils import InferenceServerException

    try:
        with tritonclient.grpc.InferenceServerClient(url, creds=access.credentials()) as triton:
            terms: dict[str, Any] = {
                "client_timeout": _TIMEOUT_S,
                "headers": dict(access.headers("")),
            }
            about = triton.get_server_metadata(**terms)
            ready = triton.is_server_ready(**terms)
            models = [name for name in MODELS if triton.is_model_ready(name, **terms)]
    except (InferenceServerException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        yield Finding("failed" if expected else "warning", "server", f"none answers at {url} ({reason}); start predict2-serve, or name another with --url")  # fmt: skip
        return
    if not ready:
        yield Finding("failed" if expected else "warning", "server", f"{url} isn't ready yet; wait for it with predict2 ready")  # fmt: skip
        return
    yield Finding("ok", "server", f"{url} is ready: {about.name} {about.version}")
    if "generate" in models:
        yield Finding("ok", "models", ", ".join(models))
    else:
        yield Finding("failed", "models", f"{url} doesn't serve `generate`, which the client calls, so it is another server than predict2-serve's")  # fmt: skip


def ports() -> Finding:
    """Which ports a server of this machine would listen on."""
    taken = [f"{name} {port}" for name, port in PORTS.items() if _is_taken(port)]
    if taken:
        return Finding("warning", "ports", f"something listens on {', '.join(taken)} of this machine; another server needs others (predict2-serve --grpc-port)")  # fmt: skip
    named = ", ".join(f"{name} {port}" for name, port in PORTS.items())
    return Finding("ok", "ports", f"free for a server: {named}")


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(_TIMEOUT_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def served(repository: Path) -> Iterator[Finding]:
    """What predict2-serve finds in a repository and on this machine, before it would start."""
    beside = shutil.which("predict2-serve", path=str(Path(sys.executable).parent))
    program = beside or shutil.which("predict2-serve")
    if program is None:
        yield Finding("warning", "repository", f"predict2-serve isn't installed here, so {repository} can't be checked; pip install '{DISTRIBUTION}[server]'")  # fmt: skip
        return
    any_port = [word for name in ("http", "grpc", "metrics") for word in (f"--{name}-port", "0")]
    try:
        done = subprocess.run([program, str(repository.absolute()), "--check", *any_port], capture_output=True, text=True, timeout=_CHECK_TIMEOUT_S, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("failed", "repository", f"predict2-serve --check doesn't end ({error}); run it by hand")  # fmt: skip
        return
    findings = [found for line in done.stdout.splitlines() if (found := _read(line))]
    yield from findings
    if done.returncode and not any(found.status == "failed" for found in findings):
        why = " ".join(done.stderr.split())[-300:]
        yield Finding("failed", "repository", f"predict2-serve --check ended with {done.returncode}: {why}")  # fmt: skip


def _read(line: str) -> Finding | None:
    """A line of `predict2-serve --check`."""
    status, what, said = line[:8].strip(), *line[8:].partition(": ")[::2]
    for known in ("ok", "warning", "failed"):
        if status == known:
            return Finding(known, what, said)
    return None
