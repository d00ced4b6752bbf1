# SPDX-License-Identifier: Apache-2.0
"""Whether an engine is installed already, so that a build can go on where it stopped."""

from pathlib import Path

from predict2_runtime.engines import open_engine, read_manifest
from predict2_spec.errors import EngineMismatchError


def is_current(engine: Path, network: str, key: str) -> bool:
    """Whether the engine of this key is there, verified, and runs on this machine."""
    try:
        manifest = read_manifest(engine)
        if manifest.recipe != key or manifest.verification.keys() != manifest.graphs.keys():
            return False
        open_engine(engine, network)
    except EngineMismatchError:
        return False
    return True
