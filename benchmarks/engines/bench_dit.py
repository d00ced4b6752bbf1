# SPDX-License-Identifier: Apache-2.0
"""The plain torch DiT in bf16 at the real shapes: the yardstick for every engine. Random weights, batch 1."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.engines.random_networks import random_network
from benchmarks.headline import WORKLOADS, Workload, evaluation_flops
from benchmarks.results import record, summary
from benchmarks.timing import Seconds, gpu_seconds
from predict2_export.networks.dit import Dit
from predict2_spec.networks import LATENT_CHANNELS

COMMAND = "make gpu"
CASES = WORKLOADS[:4]  # a clip of the 14B takes ten seconds a pass


def measure(of: Workload, like: Tensor) -> Seconds:
    """Seconds of each forward pass."""
    torch.manual_seed(0)
    spec, latent = of.preset.dit(of.task), of.latent
    dit = random_network(partial(Dit, spec), like)
    options = {"device": like.device, "dtype": like.dtype}
    x = torch.randn(1, LATENT_CHANNELS, latent.frames, latent.height, latent.width, **options)
    time = torch.full((1, latent.frames), 0.5, **options)
    text = torch.randn(1, of.preset.text_encoder.num_tokens, spec.text_width, **options)
    mask = torch.zeros_like(x[:, :1]) if spec.condition_mask else None
    with torch.inference_mode():
        assert torch.isfinite(dit(x, time, text, mask)).all()
        return gpu_seconds(lambda: dit(x, time, text, mask), runs=10)


def main(cases: Sequence[Workload] = CASES, like: Tensor | None = None) -> None:
    """Measure and record, in the type and on the device of `like`."""
    like = torch.empty((), device="cuda", dtype=torch.bfloat16) if like is None else like
    for of in cases:
        result = summary(measure(of, like))
        rate = evaluation_flops(of) / result["median_s"] / 1e12
        note = f"{of.latent.tokens} tokens, {rate:.0f} TFLOP/s"
        record(f"DiT forward, torch eager bf16, {of.name}", COMMAND, {**result, "note": note})


if __name__ == "__main__":
    main()
