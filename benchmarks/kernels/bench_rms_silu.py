# SPDX-License-Identifier: Apache-2.0
"""The VAE decoder's norm and SiLU at each of its levels: our kernel beside the network's own modules."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import nn

from benchmarks.ceilings import traffic
from benchmarks.kernels.workloads import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_export.networks.vae import RmsNorm
from predict2_kernels import reference
from predict2_kernels.vae_ops import rms_silu
from predict2_spec.networks import WAN_VAE

COMMAND = "make gpu"
PASSES = 2  # of the activations through memory: read, written


def levels(frames: int, height: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """(channels, frames, height, width) of each level that decodes latents of a size."""
    for level, multiplier in enumerate(reversed(WAN_VAE.multipliers)):
        yield WAN_VAE.base_width * multiplier, frames, height, width
        if level < len(WAN_VAE.temporal_down):
            height, width = 2 * height, 2 * width
            frames *= 2 if WAN_VAE.temporal_down[::-1][level] else 1


def main(workloads: Sequence[Workload] = WORKLOADS, device: str = "cuda") -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    clips = [of.latent for of in workloads if of.frames > 1]
    for latent in dict.fromkeys(clips):
        for channels, *size in levels(1, latent.height, latent.width):  # a latent frame at a time
            norm = RmsNorm(channels, dims=3)
            nn.init.normal_(norm.gamma)
            module = nn.Sequential(norm, nn.SiLU()).to(device, torch.bfloat16).requires_grad_(False)
            x = torch.randn(1, channels, *size, device=device, dtype=torch.bfloat16)
            x = x.contiguous(memory_format=torch.channels_last_3d)
            some = x[..., :1, :].contiguous(memory_format=torch.channels_last_3d)
            expected = reference.rms_silu(some.float(), norm.gamma.float())
            # one rounding of the result, half a step of 2^-8
            torch.testing.assert_close(
                rms_silu(some, norm.gamma).float(), expected, rtol=2**-8, atol=1e-5
            )
            for name, run in (
                ("kernel", partial(rms_silu, x, norm.gamma)),
                ("torch", partial(module, x)),
            ):
                result = summary(gpu_seconds(run))
                note = traffic(PASSES * x.nbytes, result["median_s"])
                title = f"rms_silu {channels} x {size[0]} x {size[1]} x {size[2]}, {name}"
                record(title, COMMAND, {**result, "note": note})


if __name__ == "__main__":
    main()
