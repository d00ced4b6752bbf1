# SPDX-License-Identifier: Apache-2.0
"""Guidance and solver update of a 720p clip: our kernel beside the same formula in torch."""

import torch

from benchmarks.report import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import check, library
from predict2_kernels.reference import SolverStep, cfg_ab2_step
from predict2_runtime.schedule import flow_time, solver_steps
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.video import VIDEO_SIZES, VideoShape

COMMAND = "make gpu"
BYTES_AN_ELEMENT = 3 * 4 + 2 * 2 + 2 * 4 - 4  # x, x0_before in; two flows; x, x0 out


def main() -> None:
    """Check, then measure and record."""
    width, height = VIDEO_SIZES["720"]["16:9"]
    latent = VideoShape(93, height, width).latent
    shape = (LATENT_CHANNELS, latent.frames, latent.height * latent.width)
    torch.manual_seed(0)
    x, before, x0 = (torch.randn(shape, device="cuda") for _ in range(3))
    cond, uncond = (torch.randn(shape, device="cuda").bfloat16() for _ in range(2))
    given = torch.randn(shape[0], 1, shape[2], device="cuda")
    entry = solver_steps(35)[7]
    step = SolverStep(flow_time(entry.sigma), 7.0, entry.keep, entry.now, entry.before)
    pointers = [t.data_ptr() for t in (x, cond, uncond, before, given, x0)]
    values = (step.time, step.guidance, step.keep, step.now, step.before)
    stream = torch.cuda.current_stream().cuda_stream

    def kernel() -> None:
        check(library().predict2_cfg_ab2_step(*pointers, *shape, 1, *values, stream))

    expected, _ = cfg_ab2_step(x.clone(), cond, uncond, before, given, step)
    kernel()
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    for name, run in (
        ("kernel", kernel),
        ("torch", lambda: cfg_ab2_step(x, cond, uncond, before, given, step)),
    ):
        result = summary(gpu_seconds(run))
        rate = x.numel() * BYTES_AN_ELEMENT / result["median_s"] / 1e9
        record(f"cfg_ab2_step 720p, {name}", COMMAND, {**result, "note": f"{rate:.0f} GB/s"})


if __name__ == "__main__":
    main()
