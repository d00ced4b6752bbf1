# SPDX-License-Identifier: Apache-2.0
"""One predict2-serve on this machine, started, asked and ended as a pod is."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from .rules import Rules

START_S = 180  # a limit for a hang
_READY = re.compile(r"ready after .* s: gRPC (\S+), HTTP (\S+), metrics")
_REGION = re.compile(r"/dev/shm/\S+")


class Replica:
    """A server process.

    Args:
        name: of its log and its temporary folder.
        repository: what it serves.
        folder: where both are made.
        rules: of its end.
        arguments: more of predict2-serve's.
    """

    def __init__(
        self, name: str, repository: Path, folder: Path, rules: Rules, *arguments: str
    ) -> None:
        self.name, self.repository, self.rules = name, repository, rules
        self.terminating = False
        self.url = self.http_url = ""
        self._log = folder / f"{name}.txt"
        temporary = folder / f"{name}.tmp"
        temporary.mkdir()
        command = [
            str(Path(sys.executable).with_name("predict2-serve")), str(repository),
            "--http-port=0", "--grpc-port=0", "--metrics-port=0", f"--exit-timeout={rules.finish_s:g}", *arguments,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "TMPDIR": str(temporary)},
            )

    def text(self) -> str:
        """What it wrote."""
        return self._log.read_text(errors="replace")

    def wait_until_started(self) -> "Replica":
        """Wait until it says where it listens; RuntimeError if it doesn't."""
        deadline = time.monotonic() + START_S
        while not (found := _READY.search(self.text())):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} didn't start:\n{self.text()}")
            time.sleep(0.05)
        self.url, self.http_url = found.groups()
        return self

    def is_ready(self) -> bool:
        """What the readiness probe of a pod that isn't terminating finds."""
        if self.terminating or not self.url or self._process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(
                f"http://{self.http_url}{self.rules.ready_path}", timeout=5
            ):
                return True
        except OSError:
            return False

    def stop(self) -> int:
        """What happens to a pod that is deleted: preStop, SIGTERM, the grace period; its exit code."""
        self.terminating = True
        began = time.monotonic()
        time.sleep(self.rules.wait_before_stop_s)
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(max(1.0, self.rules.grace_s - (time.monotonic() - began)))

    def kill(self) -> None:
        """End all its processes at once, as a container is killed; leave no shared memory behind."""
        processes = [self._process.pid, *_descendants(self._process.pid)]
        regions = {r for pid in processes for r in _REGION.findall(_read(f"/proc/{pid}/maps"))}
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for region in regions:
            Path(region).unlink(missing_ok=True)

    def is_running(self) -> bool:
        """Whether its process is there."""
        return self._process.poll() is None


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # it has ended
        return ""


def _descendants(pid: int) -> set[int]:
    children = {
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*")
        for child in _read(f"{task}/children").split()
    }
    return children.union(*map(_descendants, children))
