# SPDX-License-Identifier: Apache-2.0
"""`predict2-export`: from checkpoints to a repository that predict2-serve can serve."""

import argparse
import sys
from collections.abc import Sequence

from predict2_spec.errors import Predict2Error, in_words

from .commands import (
    build,
    calibrate,
    engine,
    fetch,
    inspect,
    native,
    onnx,
    plan,
    refit,
    toy_weights,
    verify,
)

COMMANDS = (
    build,
    calibrate,
    engine,
    fetch,
    inspect,
    native,
    onnx,
    plan,
    refit,
    toy_weights,
    verify,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="predict2-export", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `predict2-export`; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (Predict2Error, OSError) as error:
        print(f"predict2-export: {in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("predict2-export: stopped; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
