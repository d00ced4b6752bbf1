# SPDX-License-Identifier: Apache-2.0
"""`predict2-export calibrate`: measure a denoiser once, for FP8 engines that are built anywhere."""

import argparse
import shlex
import time
from pathlib import Path
from typing import Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import PRESETS, find_preset
from predict2_spec.tensors import TEXT2IMAGE_DENOISER, VIDEO2WORLD_DENOISER, served_stages

from .build import add_post_trained, post_trained
from .level import add_measurement, measurement

_DENOISERS = (TEXT2IMAGE_DENOISER.name, VIDEO2WORLD_DENOISER.name)


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "calibrate",
        help="run a denoiser on many prompts and note how large its layers' inputs get, for build --level fp8",
    )
    parser.add_argument(
        "--preset", default="toy", help=f"one of {', '.join(PRESETS)} (%(default)s)"
    )
    parser.add_argument("--stage", required=True, choices=_DENOISERS)
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to run (%(default)s)"
    )
    add_measurement(parser)
    add_post_trained(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure, with a line of progress for every prompt."""
    preset = find_preset(args.preset)
    if args.stage not in [stage.name for stage in served_stages(preset)]:
        raise InvalidRequestError(
            f"preset {preset.name} has no {args.stage}; its tasks are {', '.join(preset.tasks)}"
        )
    from predict2_export.fp8.calibrate import calibrate  # torch takes seconds to load
    from predict2_export.layouts import located
    from predict2_export.recipes import recipes
    from predict2_export.toy import whole_file

    began = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    found = recipes(
        located(preset, args.checkpoints),
        args.checkpoints,
        post_trained=post_trained(args, preset),
    )
    made = calibrate(preset, found, args.stage, measurement(args, preset), report)
    with whole_file(args.output) as part:
        part.write_text(made.to_json(), encoding="utf-8")
    path = shlex.quote(str(args.output))
    report(f"{args.output} is for predict2-export build --level fp8 --calibration {path}")
