# SPDX-License-Identifier: Apache-2.0
"""Flags of the commands that make a repository: what to build, from what, to where."""

import argparse
from pathlib import Path

from predict2_spec.errors import InvalidRequestError, Predict2Error
from predict2_spec.presets import PRESETS
from predict2_spec.tensors import GUARDRAIL_VIDEO, STAGES

TEMPLATES = Path(__file__).resolve().parents[3] / "model_repository"


def add_repository_flags(parser: argparse.ArgumentParser, default_output: str) -> None:
    """Add them.

    Args:
        parser: the command's.
        default_output: as the help shall say it.
    """
    parser.add_argument(
        "--preset", default="toy", help=f"one of {', '.join(PRESETS)} (%(default)s)"
    )
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument("--output", type=Path, help=f"repository to make ({default_output})")
    parser.add_argument(
        "--only", default="", choices=["", *(s.name for s in STAGES)], help="one stage"
    )
    parser.add_argument(
        "--trust-torchscript",
        "--trust_torchscript",
        action="store_true",
        help="run the program that a preset's image tokenizer is published as; "
        "it can do on this machine whatever you can",
    )
    parser.add_argument(
        "--skip-guardrail-video",
        "--skip_guardrail_video",
        action="store_true",
        help="build a repository whose server doesn't look at frames before they leave; without this a build needs "
        "the guardrails' files",
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=TEMPLATES,
        help="where config.pbtxt and model.py are",
    )


def check_repository_flags(args: argparse.Namespace) -> None:
    """Refuse what can't be made.

    Raises:
        Predict2Error: there are no templates.
        InvalidRequestError: nothing is left to build.
    """
    if not args.model_repository.is_dir():
        raise Predict2Error(
            f"{args.model_repository} doesn't exist; name the checkout's model_repository folder with --model-repository"
        )
    if args.skip_guardrail_video and args.only == GUARDRAIL_VIDEO.name:
        raise InvalidRequestError(
            f"--only {args.only} and --skip-guardrail-video leave nothing to build; drop one of them"
        )
