# SPDX-License-Identifier: Apache-2.0
"""`predict2-export verify`: installed engines beside the torch module and ONNX Runtime."""

import argparse
from typing import Any

from .installed import add_installed_flags, installed_recipes, with_progress


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "verify",
        help="compare installed engines with torch and ONNX Runtime, and note what was found in their manifests",
    )
    add_installed_flags(parser)
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where torch runs (%(default)s)"
    )
    parser.add_argument(
        "--shapes",
        default="min",
        choices=["min", "opt", "max"],
        help="which sizes of a plan's profile to try (%(default)s)",
    )
    parser.add_argument(
        "--skip-onnxruntime",
        "--skip_onnxruntime",
        action="store_true",
        help="spare the time and the disk of lowering the networks once more",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare one stage after the other, with a line for every comparison."""
    from predict2_export.comparison import Choices, compare  # torch takes seconds to load
    from predict2_export.to_onnx import quiet_exporter
    from predict2_runtime.repository import VERSION_FOLDER

    quiet_exporter()
    todo = installed_recipes(args)
    choices = Choices(args.device, not args.skip_onnxruntime, args.shapes)
    for recipe, tell in with_progress(todo):
        compare(args.repository / recipe.network / VERSION_FOLDER, recipe, choices, tell)
    print(f"{args.repository}: {len(todo)} engines agree with torch, which their manifests say now")
