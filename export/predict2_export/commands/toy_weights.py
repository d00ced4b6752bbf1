# SPDX-License-Identifier: Apache-2.0
"""`predict2-export toy-weights`: seeded random weights of the toy preset."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "toy-weights",
        help="write seeded random weights of the toy preset, for tests; the trained ones need no command",
    )
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Write the files."""
    from predict2_export.toy import write_toy_checkpoint

    write_toy_checkpoint(args.checkpoints, args.seed)
    print(f"toy weights with seed {args.seed} are in {args.checkpoints}")
