# SPDX-License-Identifier: Apache-2.0
"""What this machine's libraries reach at our sizes: copies, products, attention, convolutions. Kernels are held beside it.

python -m benchmarks.engines.bench_ceilings [copy|products|attention|convolutions]
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.ceilings import COPY, PREFIX
from benchmarks.headline import WORKLOADS
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_runtime.torch_networks.products import Fp8Weight, product, quantize
from predict2_spec.networks import DitSpec

COMMAND = "make gpu"
COPIED_BYTES = 2**30
BACKENDS = {
    "torch's choice": None,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}
# (channels, frames of a chunk, height, width) where a 720p decoder does most of its work
CONVOLUTIONS = ((384, 2, 176, 320), (192, 4, 352, 640), (96, 4, 704, 1280))
# (network, tokens of each headline workload); both rows of guidance are one product
PRODUCTS = tuple(dict.fromkeys((of.preset.dit(of.task), of.latent.tokens) for of in WORKLOADS))
ATTENTION = tuple(dict.fromkeys((spec.num_heads, tokens) for spec, tokens in PRODUCTS))


@dataclass(frozen=True)
class Case:
    """Something to time, and how much it is."""

    name: str
    amount: float  # bytes or FLOP
    unit: str
    run: Callable[[], object]


def copies(like: Tensor, size: int = COPIED_BYTES) -> Iterator[Case]:
    """Memory read and written once."""
    source = like.new_empty(size // like.itemsize)
    target = torch.empty_like(source)
    yield Case(COPY, 2 * source.nbytes, "gb_s", lambda: target.copy_(source))


def products(
    like: Tensor, sizes: Sequence[tuple[DitSpec, int]] = PRODUCTS, rows: int = 2
) -> Iterator[Case]:
    """The products of a block with `rows` samples, in the type of `like` and in FP8 with a scale a row."""
    for spec, tokens in sizes:
        d, hidden = spec.width, spec.mlp_ratio * spec.width
        for inputs, outputs in ((d, 3 * d), (d, d), (d, hidden), (hidden, d)):
            x = torch.randn(rows * tokens, inputs, device=like.device).to(like.dtype)
            weight = torch.randn(outputs, inputs, device=like.device).to(like.dtype)
            flops = 2.0 * rows * tokens * inputs * outputs
            title = f"{rows * tokens} x {inputs} x {outputs}"
            yield Case(f"product {title}", flops, "tflop_s", partial(F.linear, x, weight))
            codes = quantize(weight)
            coded = Fp8Weight(codes.codes, codes.scales.flatten())
            yield Case(f"FP8 product {title}", flops, "tflop_s", partial(product, quantize(x), coded))  # fmt: skip


def attention(
    like: Tensor,
    sizes: Sequence[tuple[int, int]] = ATTENTION,
    head_dim: int = 128,
    backends: dict[str, SDPBackend | None] = BACKENDS,
) -> Iterator[Case]:
    """Self-attention of one sample, (heads, tokens) each."""
    for heads, tokens in sizes:
        shape = (3, 1, heads, tokens, head_dim)
        q, k, v = torch.randn(shape, device=like.device).to(like.dtype)
        flops = 4.0 * tokens * tokens * heads * head_dim
        for name, backend in backends.items():
            title = f"attention {heads} heads x {tokens} tokens, {name}"
            yield Case(title, flops, "tflop_s", partial(_attend, q, k, v, backend))


def _attend(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend | None) -> Tensor:
    with nullcontext() if backend is None else sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)


def convolutions(
    like: Tensor, sizes: Sequence[tuple[int, int, int, int]] = CONVOLUTIONS
) -> Iterator[Case]:
    """Causal 3x3x3 convolutions of the VAE with channels last, two frames kept before a chunk's own."""
    for channels, frames, height, width in sizes:
        weight = torch.randn(channels, channels, 3, 3, 3, device=like.device).to(like.dtype)
        x = torch.randn(1, channels, frames + 2, height, width, device=like.device).to(like.dtype)
        x, weight = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, weight))
        flops = 2.0 * 27 * channels * channels * frames * height * width
        title = f"convolution {channels} x {frames} x {height} x {width}"
        yield Case(title, flops, "tflop_s", partial(F.conv3d, x, weight, padding=(0, 1, 1)))


CEILINGS = {
    "copy": copies,
    "products": products,
    "attention": attention,
    "convolutions": convolutions,
}


def measure(cases: Iterator[Case], runs: int = 10) -> None:
    """Time cases and record them; what this GPU or torch can't do is left out."""
    scale = {"gb_s": 1e9, "tflop_s": 1e12}
    written = {"gb_s": "GB/s", "tflop_s": "TFLOP/s"}
    with torch.inference_mode():
        for case in cases:
            try:
                seconds = gpu_seconds(case.run, runs=runs)
            except (RuntimeError, NotImplementedError) as error:
                print(f"{case.name}: left out, {str(error).splitlines()[0]}", flush=True)
                continue
            result = summary(seconds)
            rate = case.amount / result["median_s"] / scale[case.unit]
            values = {case.unit: round(rate, 1), "note": f"{rate:.0f} {written[case.unit]}"}
            record(f"{PREFIX}{case.name}", COMMAND, {**result, **values})


def main() -> None:
    """Measure what the arguments name, or all."""
    like = torch.empty((), device="cuda", dtype=torch.bfloat16)
    for name in sys.argv[1:] or CEILINGS:
        measure(CEILINGS[name](like))
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
