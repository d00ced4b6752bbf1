# SPDX-License-Identifier: Apache-2.0
"""`predict2-export build`: lower, verify and install every engine of a preset."""

import argparse
import time
from pathlib import Path
from typing import Any

from predict2_spec.errors import Predict2Error
from predict2_spec.presets import PRESETS, find_preset
from predict2_spec.tensors import STAGES

TEMPLATES = Path(__file__).resolve().parents[3] / "model_repository"


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser("build", help="lower, verify and install every engine of a preset")
    parser.add_argument(
        "--preset", default="toy", help=f"one of {', '.join(PRESETS)} (%(default)s)"
    )
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help="repository to make (build/served/PRESET)")
    parser.add_argument(
        "--only", default="", choices=["", *(s.name for s in STAGES)], help="one stage"
    )
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to run (%(default)s)"
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=TEMPLATES,
        help="where config.pbtxt and model.py are",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Build, with a line of progress for every step."""
    preset = find_preset(args.preset)
    output = args.output or Path("build/served") / preset.name
    if not args.model_repository.is_dir():
        raise Predict2Error(
            f"{args.model_repository} doesn't exist; name the checkout's model_repository folder with --model-repository"
        )
    from predict2_export.build import build  # torch takes seconds to load; --help shouldn't
    from predict2_export.to_onnx import quiet_exporter

    quiet_exporter()
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    build(
        preset,
        args.checkpoints,
        args.model_repository,
        output,
        report,
        only=args.only,
        device=args.device,
    )
    if args.only:
        report(f"{args.only} is installed in {output}")
    else:
        report(f"{output} is ready: predict2-serve {output}")
