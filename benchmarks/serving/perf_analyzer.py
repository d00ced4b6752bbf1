# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's perf_analyzer: the one on PATH, or one made of what PyPI and Debian have, without root.

python -m benchmarks.serving.perf_analyzer        make it where needed and print its path
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

from benchmarks.results import ROOT

TOOLS = ROOT / "build" / "tools"
VERSION = "2.60.0"  # of tritonclient, whose later wheels are without the program
_WHEEL_SHA256 = "778ef1561092be6b3ef65a4b0f2f3c641263703ac0f43ddf4a172c5a9bfb8cd7"
# It was linked with a glibc newer than Debian 12's. Debian 13's libraries lie beside it, for nothing else to use.
_SUITE = "trixie"
_LIBRARIES = ("libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g", "libzstd1")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LAUNCHER = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
exec {command} "$@"
"""
_NATIVE = '"$here/program"'
_WITH_LIBRARIES = '"$here/lib/ld-linux-x86-64.so.2" --library-path "$here/lib" "$here/program"'


class ToolError(RuntimeError):
    """perf_analyzer can't be had here; the message says how else to get it."""


def find(tools: Path = TOOLS) -> Path:
    """The program, made in `tools` where there is none on PATH.

    Raises:
        ToolError: neither is possible.
    """
    on_path = shutil.which("perf_analyzer")
    if on_path:
        return Path(on_path)
    folder = tools / f"perf_analyzer-{VERSION}"
    launcher = folder / "perf_analyzer"
    if not launcher.is_file():
        tools.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=tools, prefix=".perf_analyzer-") as part:
            _make(Path(part), Path(part) / "made")
            shutil.rmtree(folder, ignore_errors=True)
            (Path(part) / "made").rename(folder)
    return launcher


def _make(work: Path, made: Path) -> None:
    if platform.machine() != "x86_64":
        raise _unavailable(f"the wheel's program is for x86_64, this is {platform.machine()}")
    made.mkdir()
    program, launcher = made / "program", made / "perf_analyzer"
    with ZipFile(_download_wheel(work)) as wheel:
        program.write_bytes(wheel.read(f"tritonclient-{VERSION}.data/data/bin/perf_analyzer"))
    program.chmod(0o755)
    _write_launcher(launcher, _NATIVE)
    if _runs(launcher):
        return
    _add_libraries(work, made / "lib")
    _write_launcher(launcher, _WITH_LIBRARIES)
    if not _runs(launcher):
        raise _unavailable("what was made of PyPI's wheel and Debian's libraries doesn't run")


def _download_wheel(work: Path) -> Path:
    requirement = work / "requirement.txt"
    requirement.write_text(f"tritonclient=={VERSION} --hash=sha256:{_WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--only-binary=:all:", "--platform", "manylinux1_x86_64"]
    _run([*pip, "-r", str(requirement), "-d", str(work)], "PyPI's wheel")
    return next(work.glob("tritonclient-*.whl"))


def _add_libraries(work: Path, target: Path) -> None:
    """Debian's libraries, checked by apt against Debian's keys; apt's own state stays in `work`."""
    if not (shutil.which("apt-get") and _KEYRING.is_file()):
        raise _unavailable("it needs a newer glibc than this machine's, and apt-get isn't Debian's")
    state, cache = work / "state", work / "cache"
    (state / "lists" / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {_mirror()} {_SUITE} main\n")
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": os.devnull,
        "Dir::State": state,
        "Dir::State::Lists": state / "lists",
        "Dir::Cache": cache,
        "APT::Sandbox::User": "",  # whoever runs this, not apt's own user
    }
    apt = ["apt-get", "--quiet=2", *(f"-o{name}={value}" for name, value in options.items())]
    _run([*apt, "update"], f"Debian's list of packages ({_SUITE})")
    _run([*apt, "download", *_LIBRARIES], "Debian's libraries", cwd=work)
    root = work / "root"
    for package in work.glob("*.deb"):
        _run(["dpkg", "-x", str(package), str(root)], package.name)
    shutil.copytree(root / "usr" / "lib" / "x86_64-linux-gnu", target)


def _mirror() -> str:
    """The mirror this machine already uses."""
    listed = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    found = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
    debian = [uri for uri in found if uri.rstrip("/").endswith("/debian")]
    return debian[0] if debian else "http://deb.debian.org/debian"


def _write_launcher(path: Path, command: str) -> None:
    path.write_text(_LAUNCHER.format(command=command))
    path.chmod(0o755)


def _runs(launcher: Path) -> bool:
    done = subprocess.run([str(launcher), "--version"], capture_output=True, check=False)
    return done.returncode == 0


def _run(command: Sequence[str], what: str, cwd: Path | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise _unavailable(f"{what} can't be had: {' '.join(done.stderr.split())[:600]}")


def _unavailable(reason: str) -> ToolError:
    return ToolError(
        f"no perf_analyzer on PATH, and none can be made here: {reason}. "
        "Run this in NVIDIA's SDK container (nvcr.io/nvidia/tritonserver, tags ending in -py3-sdk), which has it"
    )


if __name__ == "__main__":
    print(find())
