# SPDX-License-Identifier: Apache-2.0
"""`predict2-export native`: an installed plan as a model of Triton's own TensorRT backend."""

import argparse
from pathlib import Path
from typing import Any

from predict2_spec.tensors import STAGES, TEXT_ENCODER


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "native",
        help="add a stage's plan to a repository once more, as a model of Triton's TensorRT backend",
    )
    parser.add_argument("repository", type=Path, help="what `predict2-export engine` made")
    parser.add_argument(
        "--stage",
        default=TEXT_ENCODER.name,
        choices=[stage.name for stage in STAGES],
        help="(%(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Install the model and say what a server needs for it."""
    from predict2_export.native_model import install_native  # torch takes seconds to load
    from predict2_runtime.engines import read_manifest
    from predict2_runtime.repository import VERSION_FOLDER

    folder = install_native(args.repository, args.stage)
    manifest = read_manifest(args.repository / args.stage / VERSION_FOLDER)
    print(
        f"{folder} is there; a Triton with the TensorRT backend serves it, and one without no longer starts with this "
        "repository"
    )
    if manifest.plugins and not manifest.plugins_inside:
        print(
            f"it needs {', '.join(manifest.plugins)}: docs/tensorrt.md says how Triton loads them"
        )
    if manifest.version_compatible:
        print("give the server --backend-config=tensorrt,version-compatible=true")
