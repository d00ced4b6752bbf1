# SPDX-License-Identifier: Apache-2.0
"""`predict2-export`: from checkpoints to a repository that predict2-serve can serve."""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from predict2_spec.errors import Predict2Error
from predict2_spec.presets import PRESETS, find_preset
from predict2_spec.tensors import STAGES

TEMPLATES = Path(__file__).resolve().parents[2] / "model_repository"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="predict2-export", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="lower, verify and install every engine of a preset")
    build.add_argument("--preset", default="toy", help=f"one of {', '.join(PRESETS)} (%(default)s)")
    build.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    build.add_argument("--output", type=Path, help="repository to make (build/served/PRESET)")
    build.add_argument(
        "--only", default="", choices=["", *(s.name for s in STAGES)], help="one stage"
    )
    build.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to run (%(default)s)"
    )
    build.add_argument(
        "--model-repository",
        type=Path,
        default=TEMPLATES,
        help="where config.pbtxt and model.py are",
    )

    toy = commands.add_parser(
        "toy-weights",
        help="write seeded random weights of the toy preset, for tests; the trained ones need no command",
    )
    toy.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    toy.add_argument("--seed", type=int, default=0)
    return parser


def _build(args: argparse.Namespace) -> None:
    preset = find_preset(args.preset)
    output = args.output or Path("build/served") / preset.name
    if not args.model_repository.is_dir():
        raise Predict2Error(
            f"{args.model_repository} doesn't exist; name the checkout's model_repository folder with --model-repository"
        )
    from .build import build  # torch takes seconds to load; --help shouldn't

    _quiet_torch()
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


def _quiet_torch() -> None:
    """Keep the exporter's notes about itself (torchvision is missing, an API will go) out of the progress."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="torch|onnxscript|copyreg")


def _toy_weights(args: argparse.Namespace) -> None:
    from .toy import write_toy_checkpoint

    write_toy_checkpoint(args.checkpoints, args.seed)
    print(f"toy weights with seed {args.seed} are in {args.checkpoints}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `predict2-export`; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        {"build": _build, "toy-weights": _toy_weights}[args.command](args)
    except (Predict2Error, OSError) as error:
        print(f"predict2-export: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("predict2-export: stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
