# SPDX-License-Identifier: Apache-2.0
"""Guidance and solver update of a 720p clip: our kernel beside the same formula in torch."""

from functools import partial

import torch

from benchmarks.ceilings import traffic
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels.reference import cfg_ab2_step
from predict2_kernels.solver_ops import cfg_ab2_step as operator
from predict2_runtime.schedule import flow_time, solver_steps
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.video import VIDEO_SIZES, VideoShape

COMMAND = "make gpu"
CLIP = VideoShape(93, *reversed(VIDEO_SIZES["720"]["16:9"]))
BYTES_AN_ELEMENT = 2 * 4 + 2 * 2 + 2 * 4  # x, x0_before in; two flows; x, x0 out


def main(clip: VideoShape = CLIP, device: str = "cuda") -> None:
    """Check, then measure and record."""
    latent = clip.latent
    shape = (LATENT_CHANNELS, latent.frames, latent.height * latent.width)
    torch.manual_seed(0)
    x, before = (torch.randn(shape, device=device) for _ in range(2))
    cond, uncond = (torch.randn(shape, device=device).bfloat16() for _ in range(2))
    given = torch.randn(shape[0], 1, shape[2], device=device)
    entry = solver_steps(35)[7]
    values = flow_time(entry.sigma), 7.0, entry.keep, entry.now, entry.before
    step = torch.tensor(values, dtype=torch.float64, device=device)
    tensors = (x, cond, uncond, before, given, step)
    torch.testing.assert_close(operator(*tensors), cfg_ab2_step(*tensors), rtol=1e-5, atol=1e-5)
    for name, run in (("kernel", operator), ("torch", cfg_ab2_step)):
        result = summary(gpu_seconds(partial(run, *tensors)))
        note = traffic(x.numel() * BYTES_AN_ELEMENT, result["median_s"])
        record(
            f"cfg_ab2_step {clip.width}x{clip.height}, {name}", COMMAND, {**result, "note": note}
        )


if __name__ == "__main__":
    main()
