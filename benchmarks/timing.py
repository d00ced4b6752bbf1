# SPDX-License-Identifier: Apache-2.0
"""The one timer: warm-up, CUDA events, the L2 cache flushed between runs, and the clocks while the GPU is at it."""

import subprocess
import time
from collections.abc import Callable, Iterable

import torch

L2_BYTES = 256 * 2**20  # more than any current GPU's L2
_AHEAD = 100  # flushes, some 6 ms on an H200
_CLOCKS = {
    "sm_mhz": "clocks.current.sm",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}
_QUERY = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_CLOCKS.values())}"]


class Seconds(list[float]):
    """Of each timed run; with what the GPU did meanwhile, where there is one."""

    def __init__(self, seconds: Iterable[float], clocks: dict[str, float]) -> None:
        super().__init__(seconds)
        self.clocks = clocks


def gpu_seconds(
    run: Callable[[], object], runs: int = 30, warmup: int = 3, clocks: bool = True
) -> Seconds:
    """Time runs on the current stream; on a machine without a GPU by the wall clock, to try a benchmark out.

    Args:
        run: what to time.
        runs: how often.
        warmup: runs before them.
        clocks: whether to read the GPU's, which can take one run more.
    """
    for _ in range(warmup):
        run()
    if not torch.cuda.is_available():
        return Seconds((_wall_seconds(run) for _ in range(runs)), {})
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")
    pairs = []
    # Work to begin with, so that launches are queued before their turn: else what is timed of a kernel of microseconds
    # is how long Python takes to launch it.
    for _ in range(_AHEAD):
        flush.zero_()
    for _ in range(runs):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))

    def again() -> None:
        run()
        torch.cuda.synchronize()

    seen = clocks_under(again, lambda: not pairs[-1][1].query()) if clocks else {}
    torch.cuda.synchronize()
    return Seconds((begin.elapsed_time(end) / 1e3 for begin, end in pairs), seen)


def _wall_seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def clocks_under(again: Callable[[], object], busy: Callable[[], bool]) -> dict[str, float]:
    """The SM clock, temperature and power under a load; none without nvidia-smi.

    An idle GPU has other clocks. So nvidia-smi starts while the runs are still queued, and where they end before it
    they are repeated until it has answered.

    Args:
        again: keeps the GPU busy for one more run.
        busy: whether it is still.
    """
    try:
        smi = subprocess.Popen(
            [*_QUERY, "--format=csv,noheader,nounits"], stdout=subprocess.PIPE, text=True
        )
    except OSError:
        return {}
    while smi.poll() is None:
        if busy():
            time.sleep(0.001)
        else:
            again()
    return read_clocks(smi.communicate()[0])


def read_clocks(answer: str) -> dict[str, float]:
    """What nvidia-smi answered, by our names; what it doesn't know is left out."""
    found = {}
    for name, value in zip(_CLOCKS, answer.strip().split(","), strict=False):
        try:
            found[name] = float(value)
        except ValueError:  # [N/A]
            continue
    return found
