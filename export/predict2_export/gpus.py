# SPDX-License-Identifier: Apache-2.0
"""What GPUs can do at most, from NVIDIA's datasheets: dense rates, half of those printed with sparsity."""

from dataclasses import dataclass

from predict2_spec.errors import InvalidRequestError

TERA = 10**12
GIGA = 10**9


@dataclass(frozen=True)
class Gpu:
    """One GPU. A peak is what the tensor cores could do at their boost clock; kernels reach less."""

    name: str
    bf16_flops: float  # a second
    fp8_flops: float
    bandwidth: float  # bytes of its memory a second
    memory_bytes: int
    source: str


_ROWS = (
    Gpu(
        "H200", 989 * TERA, 1979 * TERA, 4.8 * TERA, 141 * GIGA,
        "https://www.nvidia.com/en-us/data-center/h200/ (SXM)",
    ),
    Gpu(
        "H100", 989 * TERA, 1979 * TERA, 3.35 * TERA, 80 * GIGA,
        "https://www.nvidia.com/en-us/data-center/h100/ (SXM)",
    ),
    Gpu(
        "H100-PCIe", 756 * TERA, 1513 * TERA, 2.0 * TERA, 80 * GIGA,
        "NVIDIA H100 PCIe datasheet",
    ),
    Gpu(
        "B200", 2250 * TERA, 4500 * TERA, 7.7 * TERA, 180 * GIGA,
        "NVIDIA Blackwell datasheet (HGX B200, of each GPU)",
    ),
    Gpu(
        "L40S", 362 * TERA, 733 * TERA, 0.864 * TERA, 48 * GIGA,
        "https://www.nvidia.com/en-us/data-center/l40s/",
    ),
)  # fmt: skip
GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _ROWS}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, in any case of letters.

    Raises:
        InvalidRequestError: there is none; the message lists them.
    """
    for gpu in _ROWS:
        if gpu.name.lower() == name.lower():
            return gpu
    raise InvalidRequestError(f"gpu {name!r:.40} is unknown; choose one of {', '.join(GPUS)}")
