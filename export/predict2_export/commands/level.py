# SPDX-License-Identifier: Apache-2.0
"""Flags that choose a level: how much exactness is traded for speed."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset

if TYPE_CHECKING:
    from predict2_export.fp8.calibrate import Measurement
    from predict2_export.fp8.recipe import Fp8Choice


def add_level(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that builds denoisers."""
    group = parser.add_argument_group("levels")
    group.add_argument(
        "--level",
        default="exact",
        choices=["exact", "fp8"],
        help="exact: the original's arithmetic; fp8: most of the denoisers' products in 8 bits (%(default)s)",
    )
    group.add_argument(
        "--calibration",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="of a denoiser, made by `calibrate`; one that has none is measured first, which takes a GPU for all but "
        "the toy",
    )
    group.add_argument(
        "--fp8-layers",
        "--fp8_layers",
        nargs="+",
        metavar="GLOB",
        help="which layers of a block are in 8 bits, such as 'mlp.*' (all that may be)",
    )
    group.add_argument(
        "--fp8-keep-blocks",
        "--fp8_keep_blocks",
        type=int,
        metavar="N",
        help="how many blocks at either end stay exact (3 of 40, and one at least)",
    )
    add_measurement(group)


def add_measurement(parser: "argparse.ArgumentParser | argparse._ArgumentGroup") -> None:
    """Add the flags that say how a denoiser is measured."""
    parser.add_argument(
        "--calibration-prompts",
        "--calibration_prompts",
        type=Path,
        metavar="FILE",
        help="what to measure with, a prompt a line; by default those that ship for the preset",
    )
    parser.add_argument(
        "--calibration-margin",
        "--calibration_margin",
        type=float,
        metavar="SHARE",
        help="what to add to the largest values seen (0.1)",
    )


def measurement(args: argparse.Namespace, preset: Preset) -> "Measurement":
    """How the flags want denoisers measured."""
    from predict2_export.fp8.calibrate import Measurement, read_prompts
    from predict2_export.fp8.calibration import MARGIN

    margin = MARGIN if args.calibration_margin is None else args.calibration_margin
    return Measurement(read_prompts(preset, args.calibration_prompts), args.device, margin=margin)


def fp8_choice(args: argparse.Namespace, preset: Preset) -> "Fp8Choice | None":
    """What the flags want of the level fp8; None for the level exact.

    Raises:
        InvalidRequestError: a flag of fp8 is given without it, or doesn't fit the networks.
    """
    flags = {
        "--calibration": args.calibration,
        "--calibration-prompts": args.calibration_prompts is not None,
        "--calibration-margin": args.calibration_margin is not None,
        "--fp8-layers": args.fp8_layers,
        "--fp8-keep-blocks": args.fp8_keep_blocks is not None,
    }
    if args.level == "exact":
        if given := [flag for flag, value in flags.items() if value]:
            raise InvalidRequestError(
                f"{', '.join(given)}: these are of --level fp8; add it, or leave them out"
            )
        return None
    from predict2_export.fp8.layers import Fp8Layers
    from predict2_export.fp8.recipe import Fp8Choice

    layers = Fp8Layers(args.fp8_keep_blocks, tuple(args.fp8_layers or ["*"]))
    for spec in filter(None, (preset.text2image, preset.video2world)):
        layers.names(spec)  # before a measurement that takes hours
    as_asked = args.calibration_prompts is not None or args.calibration_margin is not None
    return Fp8Choice(measurement(args, preset), layers, tuple(args.calibration), as_asked)
