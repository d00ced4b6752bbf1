# SPDX-License-Identifier: Apache-2.0
"""What people read on a terminal: text that can't steer it, and lines on stderr."""

import contextlib
import sys
from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """The text with "?" for what doesn't print, newlines excepted."""
    # A server's words or a file's name may hold escape codes.
    return "".join(char if char == "\n" or char.isprintable() else "?" for char in text)


def note(line: str) -> None:
    """Write a line to stderr."""
    # Nobody reading stderr any more is no reason to give up the result.
    with contextlib.suppress(OSError):
        sys.stderr.write(f"{printable(line)}\n")
        sys.stderr.flush()


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads)
    for row in rows:
        # Text, because a prompt or path in square brackets is not rich's markup.
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    Console().print(table)
