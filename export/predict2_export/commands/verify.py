# SPDX-License-Identifier: Apache-2.0
"""`predict2-export verify`: installed engines beside the torch module and ONNX Runtime."""

import argparse
import time
from pathlib import Path
from typing import Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.tensors import STAGES

from .build import add_post_trained, post_trained


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "verify",
        help="compare installed engines with torch and ONNX Runtime, and note what was found in their manifests",
    )
    parser.add_argument("repository", type=Path, help="what `build` or `engine` made")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--only", default="", choices=["", *(s.name for s in STAGES)], help="one stage"
    )
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
    parser.add_argument(
        "--trust-torchscript",
        "--trust_torchscript",
        action="store_true",
        help="run the program that a preset's image tokenizer is published as",
    )
    parser.add_argument(
        "--random-weights",
        "--random_weights",
        action="store_true",
        help="the engines have seeded random ones, by `engine --random-weights`",
    )
    add_post_trained(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Compare one stage after the other, with a line for every comparison."""
    from predict2_export.comparison import Choices, compare  # torch takes seconds to load
    from predict2_export.fp8.recipe import installed_recipe
    from predict2_export.installation import check_files
    from predict2_export.layouts import located
    from predict2_export.random_weights import with_random_weights
    from predict2_export.recipes import recipes
    from predict2_export.to_onnx import quiet_exporter
    from predict2_runtime.engines import read_manifest
    from predict2_runtime.repository import VERSION_FOLDER, read_preset

    quiet_exporter()
    preset = read_preset(args.repository)
    found = recipes(
        located(preset, args.checkpoints),
        args.checkpoints,
        post_trained=post_trained(args, preset),
        trust_torchscript=args.trust_torchscript,
    )
    if args.random_weights:
        found = [with_random_weights(recipe) for recipe in found]
    there = [r for r in found if (args.repository / r.network).is_dir()]
    todo = [r for r in there if args.only in ("", r.network)]
    if not todo:
        names = ", ".join(r.network for r in there) or "nothing"
        raise InvalidRequestError(
            f"{args.repository} has no {args.only or 'engine'}; it has {names}"
        )
    check_files(preset, todo)
    choices = Choices(args.device, not args.skip_onnxruntime, args.shapes)
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    for number, recipe in enumerate(todo, start=1):
        place = f"[{number}/{len(todo)}] {recipe.network}"

        def tell(line: str, place: str = place) -> None:
            report(f"{place}: {line}")

        folder = args.repository / recipe.network / VERSION_FOLDER
        if read_manifest(folder).precision == "fp8":
            recipe = installed_recipe(recipe, args.repository)
        compare(folder, recipe, choices, tell)
    report(
        f"{args.repository}: {len(todo)} engines agree with torch, which their manifests say now"
    )
