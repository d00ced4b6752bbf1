# SPDX-License-Identifier: Apache-2.0
"""What a kernel reaches beside what a copy reaches on the same machine."""

from benchmarks.results import results_file, results_of

PREFIX = "ceiling: "
COPY = "copy of 1 GiB"


def copy_rate() -> float | None:
    """GB/s of the newest copy in this machine's results, if there is one."""
    lines = [x for x in results_of(results_file()) if x["benchmark"] == f"{PREFIX}{COPY}"]
    return float(lines[-1]["gb_s"]) if lines else None


def traffic(size: float, seconds: float) -> str:
    """A note on a kernel that moves `size` bytes in `seconds`."""
    rate, copy = size / seconds / 1e9, copy_rate()
    return f"{rate:.0f} GB/s" + (f", {rate / copy:.0%} of a copy" if copy else "")
