# SPDX-License-Identifier: Apache-2.0
"""Norm and rotation of all queries and keys of a packed QKV: our kernel beside the same formula in torch."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.ceilings import traffic
from benchmarks.kernels.workloads import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import reference
from predict2_kernels.torch_ops import qk_norm_rope

COMMAND = "make gpu"
PASSES = 4  # through memory: queries and keys, read and written


def rotary(of: Workload, device: str) -> reference.Rotary:
    """Tables of any angles: their values don't change the work."""
    half = [channels // 2 for channels in of.spec.rope_dims]
    angles = [torch.rand(n, c) * 6 for n, c in zip(of.latent.grid, half, strict=True)]
    return reference.Rotary(*(torch.stack([a.cos(), a.sin()]).to(device) for a in angles))


def in_torch(q: Tensor, k: Tensor, weights: Tensor, tables: reference.Rotary) -> list[Tensor]:
    """The same outputs by torch's own kernels."""
    return [
        reference.qk_norm_rope(x, weight, tables).transpose(1, 2).contiguous()
        for x, weight in ((q, weights[0]), (k, weights[1]))
    ]


def main(workloads: Sequence[Workload] = WORKLOADS, device: str = "cuda") -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    for of in workloads:
        tables = rotary(of, device)
        of_tables = [tables.frames, tables.rows, tables.columns]
        sizes = (1, of.latent.tokens, 3 * of.spec.width)
        q, k, _ = torch.randn(sizes, device=device, dtype=torch.bfloat16).chunk(3, dim=-1)
        weights = torch.randn(2, of.spec.head_dim, device=device, dtype=torch.bfloat16)
        arguments = (q, k, list(weights), of_tables, 0.1, True)
        for actual, x, weight, scale in zip(
            qk_norm_rope(*arguments), (q, k), weights, (0.1, 1.0), strict=True
        ):
            width = 2 * of.spec.head_dim  # two heads are enough
            part = x[..., :width].float().contiguous()
            expected = reference.qk_norm_rope(part, weight.float(), tables, scale)
            found = actual[:, :2].transpose(1, 2).float()
            # one rounding of the result, half a step of 2^-8
            torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-4)

        runs = {
            "kernel": partial(qk_norm_rope, *arguments),
            "torch": partial(in_torch, q, k, weights, tables),
        }
        for name, run in runs.items():
            result = summary(gpu_seconds(run))
            note = traffic(PASSES * of.latent.tokens * of.spec.width * 2, result["median_s"])
            title = f"qk_norm_rope {of.name}, {name}"
            record(title, COMMAND, {**result, "note": note})


if __name__ == "__main__":
    main()
