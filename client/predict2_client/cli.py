# SPDX-License-Identifier: Apache-2.0
"""`predict2`: the command line; reads the environment, prints answers, turns errors into exit codes."""

import os
import sys
from collections.abc import Sequence

from predict2_spec.errors import Predict2Error, in_words

from . import commands
from .address import DEFAULT_URL
from .flags import parse
from .terminal import printable

INTERRUPTED = 130  # as shells report a program that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `predict2`; returns the exit code."""
    args = parse(
        sys.argv[1:] if argv is None else argv,
        os.environ.get("PREDICT2_URL") or DEFAULT_URL,
        os.environ.get("PREDICT2_METRICS_URL", ""),
    )
    args.token = os.environ.get(
        "PREDICT2_TOKEN", ""
    )  # an argument would show in the list of processes
    try:
        return commands.run(args, _say)
    except KeyboardInterrupt:
        print("predict2: cancelled", file=sys.stderr)
        return INTERRUPTED
    except (Predict2Error, OSError) as error:
        print("predict2:", printable(" ".join(in_words(error).split())), file=sys.stderr)
        return 1


def _say(line: str) -> None:
    # A program that reads it needs a file's name as it is.
    print(printable(line) if sys.stdout.isatty() else line)


if __name__ == "__main__":
    sys.exit(main())
