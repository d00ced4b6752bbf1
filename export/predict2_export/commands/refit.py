# SPDX-License-Identifier: Apache-2.0
"""`predict2-export refit`: other weights, such as a LoRA's, into plans that are there."""

import argparse
from typing import Any

from .installed import add_installed_flags, installed_recipes, with_progress


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "refit",
        help="put weights into plans of TensorRT that `engine` made with --refit or --strip-weights; takes no build",
    )
    add_installed_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Refit one stage after the other."""
    from predict2_export.refit import check_refittable, refit  # torch takes seconds to load
    from predict2_export.to_onnx import quiet_exporter

    quiet_exporter()
    todo = installed_recipes(args)
    for recipe in todo:
        check_refittable(args.repository, recipe)
    for recipe, tell in with_progress(todo):
        refit(args.repository, recipe, tell)
    print(
        f"{args.repository}: {len(todo)} engines have these weights now; compare them with torch: "
        f"predict2-export verify {args.repository} --checkpoints {args.checkpoints}"
    )
