# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and modulation of all tokens: our kernel beside the same formula in torch."""

from functools import partial

import torch

from benchmarks.kernels.workloads import WORKLOADS
from benchmarks.report import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import reference
from predict2_kernels.torch_ops import adaln_modulate

COMMAND = "make gpu"
PASSES = 2  # of the activations through memory: read, written


def main() -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    for of in WORKLOADS:
        shape = (1, of.frames, of.tokens_per_frame, of.spec.width)
        x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
        m = torch.randn(1, of.frames, 3 * of.spec.width, device="cuda", dtype=torch.bfloat16)
        some = x[:, :, :16].contiguous()  # tokens of every frame
        expected = reference.adaln_modulate(some.float(), m.float())
        # one rounding of the result, half a step of 2^-8
        torch.testing.assert_close(adaln_modulate(some, m).float(), expected, rtol=2**-8, atol=1e-4)
        for name, run in (
            ("kernel", partial(adaln_modulate, x, m)),
            ("torch", partial(reference.adaln_modulate, x, m)),
        ):
            result = summary(gpu_seconds(run))
            rate = PASSES * x.nbytes / result["median_s"] / 1e9
            title = f"adaln_modulate {of.name}, {name}"
            record(title, COMMAND, {**result, "note": f"{rate:.0f} GB/s"})


if __name__ == "__main__":
    main()
