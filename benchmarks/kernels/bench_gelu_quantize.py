# SPDX-License-Identifier: Apache-2.0
"""GELU of the MLP's hidden tokens as e4m3 with a scale each: our kernel beside the same formula in torch."""

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.ceilings import traffic
from benchmarks.kernels.workloads import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import reference
from predict2_kernels.fp8_ops import gelu_quantize

COMMAND = "make gpu"
BYTES_AN_ELEMENT = 2 + 1  # bf16 in, e4m3 out; a scale a row is nothing beside them


def main(workloads: Sequence[Workload] = WORKLOADS, device: str = "cuda") -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    for of in workloads:
        shape = (of.latent.tokens, of.spec.mlp_ratio * of.spec.width)
        x = torch.randn(shape, device=device, dtype=torch.bfloat16)
        codes, scales = gelu_quantize(x[:64])
        expected = torch.nn.functional.gelu(x[:64].double()).float()
        # half a step of e4m3: 2^-4 of a value, or 2^-10 below the smallest normal one
        torch.testing.assert_close(
            codes.float() * scales, expected, rtol=2**-4, atol=2**-10 * scales.max().item()
        )
        for name, run in (
            ("kernel", partial(gelu_quantize, x)),
            ("torch", partial(reference.gelu_quantize, x)),
        ):
            result = summary(gpu_seconds(run))
            note = traffic(BYTES_AN_ELEMENT * x.numel(), result["median_s"])
            title = f"gelu_quantize {of.name}, {name}"
            record(title, COMMAND, {**result, "note": note})


if __name__ == "__main__":
    main()
