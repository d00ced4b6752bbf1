# SPDX-License-Identifier: Apache-2.0
"""LayerNorm and modulation of all tokens: our kernel beside the same formula in torch."""

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.ceilings import traffic
from benchmarks.kernels.workloads import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import reference
from predict2_kernels.fp8_ops import adaln_modulate_e4m3
from predict2_kernels.torch_ops import adaln_modulate

COMMAND = "make gpu"


def main(workloads: Sequence[Workload] = WORKLOADS, device: str = "cuda") -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    for of in workloads:
        shape = (1, of.frames, of.tokens_per_frame, of.spec.width)
        x = torch.randn(shape, device=device, dtype=torch.bfloat16)
        m = torch.randn(1, of.frames, 3 * of.spec.width, device=device, dtype=torch.bfloat16)
        some = x[:, :, :16].contiguous()  # tokens of every frame
        expected = reference.adaln_modulate(some.float(), m.float())
        # one rounding of the result, half a step of 2^-8
        torch.testing.assert_close(adaln_modulate(some, m).float(), expected, rtol=2**-8, atol=1e-4)
        codes, scales = adaln_modulate_e4m3(some, m)
        # half a step of e4m3: 2^-4 of a value, or 2^-10 below the smallest normal one
        torch.testing.assert_close(
            codes.float() * scales, expected, rtol=2**-4, atol=2**-10 * scales.max().item()
        )
        for name, passes, run in (  # passes of bf16 activations through memory: read, written
            ("kernel", 2, partial(adaln_modulate, x, m)),
            ("torch", 2, partial(reference.adaln_modulate, x, m)),
            ("kernel, e4m3", 1.5, partial(adaln_modulate_e4m3, x, m)),
            ("torch, e4m3", 1.5, partial(reference.adaln_modulate_e4m3, x, m)),
        ):
            result = summary(gpu_seconds(run))
            note = traffic(passes * x.nbytes, result["median_s"])
            title = f"adaln_modulate {of.name}, {name}"
            record(title, COMMAND, {**result, "note": note})


if __name__ == "__main__":
    main()
