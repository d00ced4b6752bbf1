# SPDX-License-Identifier: Apache-2.0
"""Gate, residual, LayerNorm and modulation of all tokens: our kernel beside the same formula in torch."""

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.ceilings import traffic
from benchmarks.kernels.workloads import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import reference
from predict2_kernels.fp8_ops import gated_residual_modulate_e4m3
from predict2_kernels.torch_ops import gated_residual, gated_residual_modulate

COMMAND = "make gpu"


def main(workloads: Sequence[Workload] = WORKLOADS, device: str = "cuda") -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    for of in workloads:
        shape = (1, of.frames, of.tokens_per_frame, of.spec.width)
        x, y = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
        sizes = (2, 1, of.frames, 3 * of.spec.width)
        m, following = torch.randn(sizes, device=device, dtype=torch.bfloat16)
        some = [t[:, :, :16].contiguous() for t in (x, y)]
        total, out = gated_residual_modulate(*some, m, following)
        assert torch.equal(total, reference.gated_residual(*some, m))
        expected = reference.adaln_modulate(total.float(), following.float())
        # one rounding of the result, half a step of 2^-8
        torch.testing.assert_close(out.float(), expected, rtol=2**-8, atol=1e-4)
        quantized_total, codes, scales = gated_residual_modulate_e4m3(*some, m, following)
        assert torch.equal(quantized_total, total)
        # half a step of e4m3: 2^-4 of a value, or 2^-10 below the smallest normal one
        torch.testing.assert_close(
            codes.float() * scales, expected, rtol=2**-4, atol=2**-10 * scales.max().item()
        )
        for name, passes, run in (  # passes of bf16 activations through memory
            ("kernel", 4, partial(gated_residual_modulate, x, y, m, following)),
            ("torch", 4, partial(reference.gated_residual_modulate, x, y, m, following)),
            ("kernel, e4m3", 3.5, partial(gated_residual_modulate_e4m3, x, y, m, following)),
            (
                "torch, e4m3",
                3.5,
                partial(reference.gated_residual_modulate_e4m3, x, y, m, following),
            ),
            ("kernel, no norm", 3, partial(gated_residual, x, y, m)),
        ):
            result = summary(gpu_seconds(run))
            note = traffic(passes * x.nbytes, result["median_s"])
            title = f"gated_residual_modulate {of.name}, {name}"
            record(title, COMMAND, {**result, "note": note})


if __name__ == "__main__":
    main()
