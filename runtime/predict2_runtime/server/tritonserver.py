# SPDX-License-Identifier: Apache-2.0
"""Finding tritonserver and making it run here: NVIDIA's container, or the server inside the pytriton wheel."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from predict2_spec.errors import ServerUnavailableError


@dataclass(frozen=True)
class Tritonserver:
    """A tritonserver that can be started."""

    binary: Path
    backends: Path | None  # None: where the binary was built to look
    shared_libraries: str | None  # LD_LIBRARY_PATH it needs; None: leave it alone


def find_tritonserver(work_folder: Path) -> Tritonserver:
    """The tritonserver on PATH, or else the one the pytriton wheel carries.

    Args:
        work_folder: an existing, writable folder that lives as long as the server.

    Raises:
        ServerUnavailableError: there is none, or this Python can't run its models.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Tritonserver(Path(on_path), None, None)
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerUnavailableError(
            "no tritonserver on PATH and none installed; run `pip install 'cosmos-predict2-triton[server]'` "
            "or start from NVIDIA's Triton container"
        )
    return _from_wheel(Path(spec.origin).parent, work_folder)


def _from_wheel(pytriton: Path, work_folder: Path) -> Tritonserver:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = (
        pytriton / "tritonserver" / "python_backend_stubs" / python / "triton_python_backend_stub"
    )
    if not stub.is_file():
        raise ServerUnavailableError(
            f"the installed tritonserver has no Python backend for Python {python}; "
            f"use one of {', '.join(sorted(p.name for p in stub.parents[1].iterdir()))}"
        )
    _check_numpy()
    library_folder = _libpython_folder()
    # The wheel's folder may be read-only, and the stub must lie beside the backend.
    backends = work_folder / "backends"
    shutil.copytree(pytriton / "tritonserver" / "backends", backends)
    shutil.copy2(stub, backends / "python" / stub.name)
    # This Python's own library comes first: with another one of the same version the stub finds no symbols.
    shared_libraries = os.pathsep.join(
        [str(library_folder), str(pytriton.parent / "nvidia_pytriton.libs")]
    )
    return Tritonserver(
        pytriton / "tritonserver" / "bin" / "tritonserver", backends, shared_libraries
    )


def _check_numpy() -> None:
    import numpy as np

    if int(np.__version__.split(".")[0]) >= 2:
        raise ServerUnavailableError(
            f"numpy {np.__version__} is installed; the Python backend of this tritonserver needs numpy below 2. "
            "Run `pip install 'numpy<2'`"
        )


def _libpython_folder() -> Path:
    name = sysconfig.get_config_var("INSTSONAME") or ""
    folder = Path(sysconfig.get_config_var("LIBDIR") or "")
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for candidate in (folder, folder / multiarch):
        if ".so" in name and (candidate / name).is_file():
            return candidate
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise ServerUnavailableError(
        f"{sys.executable} has no shared libpython, which tritonserver's Python backend loads. On Debian run "
        f"`apt-get install libpython{python}`; a Python of your own must be configured with --enable-shared"
    )
