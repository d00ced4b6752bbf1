# SPDX-License-Identifier: Apache-2.0
"""The one GPU timer: warm-up, CUDA events, the L2 cache flushed between runs."""

from collections.abc import Callable

import torch

L2_BYTES = 256 * 2**20  # more than any current GPU's L2


def gpu_seconds(run: Callable[[], object], runs: int = 30, warmup: int = 3) -> list[float]:
    """Seconds of each timed run on the current stream."""
    flush = torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(warmup):
        run()
    pairs = []
    for _ in range(runs):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]
