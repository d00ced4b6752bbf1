# SPDX-License-Identifier: Apache-2.0
"""A linear layer in FP8 that finds the scale of each token itself."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict2_export.networks.fp8 import E4M3
from predict2_kernels.reference import quantize_rows


class DynamicFp8Linear(nn.Module):
    """y = codes(x) @ codes(weight).T times both scales, in float32 at least, rounded once; no layer here has a bias.

    `weight` [out, in] in e4m3 and `weight_scale` [out] in float32 stay what they are when the network is cast.
    """

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=E4M3))
        self.register_buffer("weight_scale", torch.empty(outputs, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        codes, scales = quantize_rows(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        y = F.linear(codes.to(wide), self.weight.to(wide)) * scales * self.weight_scale
        return y.to(x.dtype)

    def _apply(self, fn: object, recurse: bool = True) -> Self:
        kept = {name: value.detach() for name, value in self.named_buffers()}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            setattr(self, name, value.to(getattr(self, name).device))
        return self
