# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that work on engines that are there: which ones, and the weights that they have or shall have."""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from predict2_spec.errors import InvalidRequestError
from predict2_spec.tensors import STAGES

from .build import add_post_trained, post_trained

if TYPE_CHECKING:
    from predict2_export.recipes import Recipe


def add_installed_flags(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument("repository", type=Path, help="what `build` or `engine` made")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--only", default="", choices=["", *(s.name for s in STAGES)], help="one stage"
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
        help="seeded random ones, as by `engine --random-weights`",
    )
    add_post_trained(parser)


def installed_recipes(args: argparse.Namespace) -> "list[Recipe]":
    """A recipe for each engine that the flags name and the repository has.

    Raises:
        EngineMismatchError: it is no repository, or an engine's manifest can't be read.
        InvalidRequestError: it has no such engine.
        CheckpointError: a file is missing.
    """
    from predict2_export.installation import check_files
    from predict2_export.layouts import located
    from predict2_export.random_weights import with_random_weights
    from predict2_export.recipes import recipes
    from predict2_runtime.repository import read_preset

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
    return [_as_installed(r, args.repository) for r in todo]


def _as_installed(recipe: "Recipe", repository: Path) -> "Recipe":
    """The recipe at the level of its engine."""
    from predict2_export.fp8.dynamic import dynamic_recipe
    from predict2_export.fp8.recipe import installed_recipe
    from predict2_export.to_torch import FILE, layers_in_8_bits
    from predict2_runtime.engines import read_manifest
    from predict2_runtime.repository import VERSION_FOLDER

    folder = repository / recipe.network / VERSION_FOLDER
    manifest = read_manifest(folder)
    if manifest.precision != "fp8":
        return recipe
    if manifest.kind == "torch":
        return dynamic_recipe(recipe, layers_in_8_bits(folder / FILE))
    return installed_recipe(recipe, repository)


def with_progress(todo: "list[Recipe]") -> "Iterator[tuple[Recipe, Callable[[str], None]]]":
    """Each recipe with what prints a line of progress for it."""
    began = time.monotonic()
    for number, recipe in enumerate(todo, start=1):

        def tell(line: str, place: str = f"[{number}/{len(todo)}] {recipe.network}") -> None:
            print(f"{time.monotonic() - began:6.1f} s  {place}: {line}", flush=True)

        yield recipe, tell
