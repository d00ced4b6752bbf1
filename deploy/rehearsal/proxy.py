# SPDX-License-Identifier: Apache-2.0
"""The shipped nginx.conf, run by a real nginx before servers that come and go."""

import re
import secrets
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

CONFIGURATION = Path(__file__).parents[1] / "proxy" / "nginx.conf"
_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost "
    "-addext subjectAltName=DNS:localhost"
)
_START_S = 30


class Proxy:
    """nginx with TLS and one caller's token; a context manager.

    Args:
        nginx: the program, and what goes before its own arguments.
        folder: for its configuration, certificate and log.
        upstream: lines of upstream.conf to begin with.
    """

    def __init__(self, nginx: Sequence[str], folder: Path, upstream: str) -> None:
        self.token = secrets.token_hex(32)
        self.ca_file = folder / "server.crt"
        port = _free_port()
        self.url = f"localhost:{port}"
        self._folder = folder
        self._command = [*nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]  # fmt: skip
        files = ["-keyout", folder / "server.key", "-out", self.ca_file]
        subprocess.run([*_CERTIFICATE.split(), *files], check=True, capture_output=True)
        (folder / "tokens.map").write_text(f'"Bearer {self.token}" rehearsal;\n')
        text = re.sub(r"listen 8443", f"listen 127.0.0.1:{port}", CONFIGURATION.read_text())
        (folder / "nginx.conf").write_text(text)
        self._write(upstream)

    def __enter__(self) -> "Proxy":
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _START_S
        while not _listens(int(self.url.rpartition(":")[2])):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"nginx didn't start:\n{self.text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def text(self) -> str:
        """Its log."""
        return (self._folder / "log.txt").read_text(errors="replace")

    def route(self, upstream: str) -> None:
        """Send new calls there; those under way go on."""
        self._write(upstream)
        subprocess.run([*self._command, "-s", "reload"], check=True, capture_output=True)

    def _write(self, upstream: str) -> None:
        (self._folder / "upstream.conf").write_text(upstream)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
