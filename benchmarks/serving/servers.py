# SPDX-License-Identifier: Apache-2.0
"""Servers to measure: predict2-serve beside this process, and repositories made for a measurement."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from predict2_runtime.repository import REPOSITORY_FILE, VERSION_FOLDER, read_preset
from predict2_spec.manifest import MANIFEST_FILE
from predict2_spec.tensors import VIDEO2WORLD_DENOISER, served_stages

SERVE = Path(sys.executable).parent / "predict2-serve"
ROUND_TRIP = Path(__file__).parent / "round_trip"
_READY = re.compile(r"ready after .* s: gRPC (\S+), HTTP (\S+), metrics ")
_OPTIONAL = re.compile(r", optional: true")
_ANSWER = "<think><overview>All is well.</overview></think><answer>No</answer>"


@dataclass(frozen=True)
class Server:
    """Where a running server listens."""

    grpc: str
    http: str


@contextmanager
def running(repository: Path, *flags: str) -> Iterator[Server]:
    """A server over `repository` on free ports, as long as the block runs.

    Raises:
        RuntimeError: it ended while starting; the message is what it wrote.
    """
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    with tempfile.TemporaryDirectory(prefix="predict2-bench-") as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as stream:
            command = [str(SERVE), str(repository), *ports, *flags]
            process = subprocess.Popen(command, stdout=stream, stderr=stream)
        try:
            yield _wait(process, log)
        finally:
            process.terminate()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> Server:
    while not (found := _READY.search(log.read_text(errors="replace"))):
        if process.poll() is not None:
            raise RuntimeError(f"predict2-serve ended while starting:\n{log.read_text()}")
        time.sleep(0.1)
    return Server(*found.groups())


class _AtOnce(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choice = {"message": {"role": "assistant", "content": _ANSWER}}
        answer = json.dumps({"choices": [choice] * body.get("n", 1)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def reasoner() -> Iterator[str]:
    """A stand-in for the language model, which answers at once; its URL#MODEL, for --reasoner."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _AtOnce) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1#stand-in"
        finally:
            server.shutdown()
            thread.join()


def stages_only(repository: Path, target: Path) -> Path:
    """The stages of a repository with no optional inputs: perf_analyzer's shared memory knows none."""
    _link(repository, target)
    for stage in served_stages(read_preset(repository)):
        folder = target / stage.name
        if (folder / "config.pbtxt").is_file():
            _own_config(repository / stage.name, folder)
    return target


def _own_config(original: Path, folder: Path) -> None:
    """In the place of a linked model a folder with a config of its own."""
    folder.unlink()
    folder.mkdir()
    (folder / VERSION_FOLDER).symlink_to((original / VERSION_FOLDER).resolve())
    config = (original / "config.pbtxt").read_text()
    (folder / "config.pbtxt").write_text(_OPTIONAL.sub("", config))


def round_trip(repository: Path, target: Path) -> Path:
    """A repository whose clip denoiser hands back what it got, and a model `caller` that calls it as a pipeline would."""
    _link(repository, target)
    denoiser = target / VIDEO2WORLD_DENOISER.name
    denoiser.unlink()
    shutil.copytree(ROUND_TRIP / denoiser.name, denoiser)
    original = repository / denoiser.name
    shutil.copy2(original / "config.pbtxt", denoiser)
    shutil.copy2(original / VERSION_FOLDER / MANIFEST_FILE, denoiser / VERSION_FOLDER)
    shutil.copytree(ROUND_TRIP / "caller", target / "caller")
    return target


def _link(repository: Path, target: Path) -> None:
    """A repository of links to the stages of another."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    stages = [stage.name for stage in served_stages(read_preset(repository))]
    for name in (REPOSITORY_FILE, *stages):
        if (repository / name).exists():
            (target / name).symlink_to((repository / name).resolve())
