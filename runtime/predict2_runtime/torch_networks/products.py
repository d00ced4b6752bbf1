# SPDX-License-Identifier: Apache-2.0
"""Products with weights in the network's type, or in 8-bit floats (e4m3) with a scale for each row.

What multiplies an 8-bit weight is rounded to e4m3 too, with a scale for each token that is found on the way.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from predict2_spec.errors import InvalidRequestError

E4M3 = torch.float8_e4m3fn
LARGEST = torch.finfo(E4M3).max  # 448
SMALLEST_SCALE = 2.0**-64  # so that a row of zeros has one with an inverse


@dataclass(frozen=True)
class Fp8Weight:
    """A weight as codes times the scale of their row."""

    codes: Tensor  # [out, in], e4m3
    scales: Tensor  # [out], float32


@dataclass(frozen=True)
class Quantized:
    """Rows as codes times a scale each."""

    codes: Tensor  # [..., in], e4m3
    scales: Tensor  # [..., 1], float32
    dtype: torch.dtype  # of what they are a rounding of, and of products

    def at(self, rows: slice) -> "Quantized":
        """Those of the first axis."""
        return Quantized(self.codes[rows], self.scales[rows], self.dtype)

    def repeated(self, times: int) -> "Quantized":
        """Again and again along the first of three axes."""
        codes = self.codes.view(torch.uint8).repeat(times, 1, 1).view(E4M3)
        return Quantized(codes, self.scales.repeat(times, 1, 1), self.dtype)


Weight = Tensor | Fp8Weight
Rows = Tensor | Quantized


def product(x: Rows, weight: Weight) -> Tensor:
    """x [..., in] times the weight, transposed: [..., out] in the dtype of x."""
    if isinstance(weight, Tensor):
        assert isinstance(x, Tensor)
        return F.linear(x, weight)
    rows = quantize(x) if isinstance(x, Tensor) else x
    codes, scales = rows.codes.flatten(0, -2), rows.scales.view(-1, 1)
    of_weight = weight.scales[None]
    if codes.is_cuda:
        y = torch._scaled_mm(
            codes, weight.codes.t(), scale_a=scales, scale_b=of_weight, out_dtype=torch.bfloat16
        )
    else:
        wide = torch.promote_types(rows.dtype, torch.float32)
        y = F.linear(codes.to(wide), weight.codes.to(wide)) * scales * of_weight
    return y.to(rows.dtype).view(*rows.codes.shape[:-1], len(weight.codes))


def quantize(x: Tensor) -> Quantized:
    """Rows of x [..., in]: the largest magnitude of each becomes the largest code."""
    wide = x.float()
    # An array of its own, because torch on a GPU multiplies by a number's inverse.
    largest = wide.new_full((), LARGEST)
    scales = (wide.abs().amax(-1, keepdim=True) / largest).clamp_min(SMALLEST_SCALE)
    codes = (wide * scales.reciprocal()).clamp(-LARGEST, LARGEST).to(E4M3)
    return Quantized(codes, scales, x.dtype)


def packed(weights: list[Weight]) -> Weight:
    """Weights that multiply the same input as one.

    Raises:
        InvalidRequestError: some are in 8 bits and others not.
    """
    plain = [weight for weight in weights if isinstance(weight, Tensor)]
    coded = [weight for weight in weights if isinstance(weight, Fp8Weight)]
    if not coded:
        return torch.cat(plain)
    if plain:
        raise InvalidRequestError(
            "of layers that multiply the same input some are in 8 bits and others aren't; choose all or none"
        )
    codes = torch.cat([weight.codes.view(torch.uint8) for weight in coded]).view(E4M3)
    return Fp8Weight(codes, torch.cat([weight.scales for weight in coded]))
