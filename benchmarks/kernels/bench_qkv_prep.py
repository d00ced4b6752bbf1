# SPDX-License-Identifier: Apache-2.0
"""A packed QKV in 8 bits, tokens in block-sparse order: our kernels beside the same formulas in torch."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.ceilings import traffic
from benchmarks.kernels.workloads import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_kernels import reference
from predict2_kernels.qkv_ops import HEAD_DIM, qk_prep, v_prep, v_scales
from predict2_spec.networks import DIT_2B_VIDEO2WORLD

COMMAND = "make gpu"
CHANNELS = [size // 2 for size in DIT_2B_VIDEO2WORLD.rope_dims]  # all released networks'
PATCH = (4, 8)  # rows and columns of a block of the sparse networks


def rotary(of: Workload, device: str) -> reference.Rotary:
    """Tables of any angles: their values don't change the work."""
    angles = [torch.rand(n, c) * 6 for n, c in zip(of.latent.grid, CHANNELS, strict=True)]
    return reference.Rotary(*(torch.stack([a.cos(), a.sin()]).to(device) for a in angles))


def by_patch(of: Workload, device: str) -> Tensor:
    """The tokens patch after patch, and frame after frame in a patch: an int32 for each."""
    frames, rows, columns = torch.unravel_index(torch.arange(of.latent.tokens), of.latent.grid)
    patch = rows // PATCH[0] * of.latent.grid[2] + columns // PATCH[1]
    keys = torch.stack([columns, rows, frames, patch])
    order = torch.arange(of.latent.tokens)
    for key in keys:  # the last one counts most
        order = order[key[order].argsort(stable=True)]
    return order.int().to(device)


def check(arguments: tuple[Tensor, ...], tables: reference.Rotary, order: Tensor) -> None:
    """Codes times scales are what they stand for, to half a step, in two heads."""
    q, k, v, weights = arguments
    some = [x[..., : 2 * HEAD_DIM].contiguous() for x in (q, k, v)]
    of_tables = [tables.frames, tables.rows, tables.columns]
    outputs = qk_prep(*some[:2], list(weights), of_tables, torch.int8, order=order)
    for x, weight, codes, scales in zip(some, weights, outputs[::2], outputs[1::2], strict=False):
        expected = reference.qk_norm_rope(x.float(), weight.float(), tables, order=order)
        off = codes * scales[..., None] - expected.transpose(1, 2)
        assert (off.abs() <= 0.501 * scales[..., None]).all()
    scales = v_scales(some[2])
    assert torch.equal(scales, reference.v_scales(some[2], HEAD_DIM))
    codes, expected = v_prep(some[2], scales, order), reference.v_prep(some[2], scales, order)
    assert torch.equal(codes.view(torch.uint8), expected.view(torch.uint8))


def in_torch(
    q: Tensor,
    k: Tensor,
    weights: Tensor,
    tables: reference.Rotary,
    dtype: torch.dtype,
    order: Tensor,
) -> list[Tensor]:
    """The outputs of `qk_prep` by torch's own kernels."""
    sides = zip((q, k), weights, strict=True)
    found = (reference.qk_prep(x, w, tables, order=order, dtype=dtype) for x, w in sides)
    return [tensor.contiguous() for pair in found for tensor in pair]


def runs(
    arguments: tuple[Tensor, ...], tables: reference.Rotary, order: Tensor
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> (bytes moved, what to time)."""
    q, k, v, weights = arguments
    of_tables = [tables.frames, tables.rows, tables.columns]
    scales = v_scales(v)
    both = (q.numel() + k.numel()) * (2 + 1)  # bf16 in, 8 bits out
    found: dict[str, tuple[int, Callable[[], object]]] = {}
    for name, dtype in (("int8", torch.int8), ("e4m3", reference.E4M3)):
        kernel = partial(qk_prep, q, k, list(weights), of_tables, dtype, order=order)
        found[f"qk_prep {name}, kernel"] = both, kernel
        found[f"qk_prep {name}, torch"] = (
            both,
            partial(in_torch, q, k, weights, tables, dtype, order),
        )
    found["v_scales, kernel"] = 2 * v.numel(), partial(v_scales, v)
    found["v_scales, torch"] = 2 * v.numel(), partial(reference.v_scales, v, HEAD_DIM)
    found["v_prep, kernel"] = 3 * v.numel(), partial(v_prep, v, scales, order)
    found["v_prep, torch"] = 3 * v.numel(), partial(reference.v_prep, v, scales, order)
    return found


def main(workloads: Sequence[Workload] = WORKLOADS, device: str = "cuda") -> None:
    """Check, then measure and record."""
    torch.manual_seed(0)
    for of in workloads:
        tables, order = rotary(of, device), by_patch(of, device)
        width = max(of.spec.width // HEAD_DIM, 1) * HEAD_DIM
        sizes = (1, of.latent.tokens, 3 * width)
        qkv = torch.randn(sizes, device=device, dtype=torch.bfloat16).chunk(3, dim=-1)
        weights = torch.randn(2, HEAD_DIM, device=device, dtype=torch.bfloat16)
        arguments = (*qkv, weights)
        check(arguments, tables, order)
        for name, (size, run) in runs(arguments, tables, order).items():
            result = summary(gpu_seconds(run))
            operator, _, kind = name.partition(", ")
            title = f"{operator} {of.name}, {kind}"
            record(title, COMMAND, {**result, "note": traffic(size, result["median_s"])})


if __name__ == "__main__":
    main()
