# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose inputs and weights are 8-bit floats (e4m3) times scales; its sums are not."""

from collections.abc import Callable, Collection, Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

E4M3 = torch.float8_e4m3fn  # a sign, 4 bits of exponent, 3 of mantissa, no infinities
LARGEST = torch.finfo(E4M3).max  # 448
_OPSET = 23
_ONNX_E4M3 = 17  # TensorProto.FLOAT8E4M3FN


class Fp8Linear(nn.Module):
    """y = dequantized(x) @ dequantized(weight).T, in the dtype of x; no layer here has a bias.

    The parameters, beside `weight` [out, in] in e4m3: `weight_scale` [out] and `input_scale` [], in the dtype of x.
    A weight is its code times the scale of its row. An input is divided by the scale, held within +-448, rounded
    to e4m3 and multiplied by the scale again.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = _constant(torch.empty(outputs, inputs, dtype=E4M3))
        self.weight_scale = _constant(torch.empty(outputs))
        self.input_scale = _constant(torch.empty(()))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if torch.onnx.is_in_onnx_export():
            return F.linear(*self._as_onnx(x))
        weight = self.weight.to(x.dtype) * self.weight_scale[:, None]
        return F.linear(e4m3(x / self.input_scale).to(x.dtype) * self.input_scale, weight)

    def _as_onnx(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight as engine builders look for them: behind DequantizeLinear, of standard operators alone."""
        # Saturation is the operator's default, and it divides in the dtype of the scale, as above.
        attributes = {"output_dtype": _ONNX_E4M3}
        codes = _operator("QuantizeLinear", [x, self.input_scale], attributes, E4M3)
        inputs = _operator("DequantizeLinear", [codes, self.input_scale], {}, x.dtype)
        parts: list[Tensor] = [self.weight, self.weight_scale]
        return inputs, _operator("DequantizeLinear", parts, {"axis": 0}, x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A cast of the whole network is one of its scales: the codes mean nothing in another dtype.
        codes = self.weight.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.weight.dtype != E4M3:
            self.weight = _constant(codes.to(self.weight.device))
        return self


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


def _operator(
    name: str, inputs: list[Tensor], attributes: Mapping[str, int], dtype: torch.dtype
) -> Tensor:
    shape = inputs[0].shape
    out: Tensor = torch.onnx.ops.symbolic(
        name, inputs, {**attributes}, dtype=dtype, shape=shape, version=_OPSET
    )
    return out


def e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 numbers; what is beyond the largest becomes the largest, where torch's cast gives NaN."""
    return x.clamp(-LARGEST, LARGEST).to(E4M3)


def scale_of(amax: Tensor) -> Tensor:
    """The scale, FP32, at which `amax` becomes the largest code.

    It is rounded to bfloat16, so that graphs in bf16 and in fp32 hold the very same numbers. What that lets exceed
    the largest code does so by less than half of e4m3's last place.
    """
    scale = (amax.float() / LARGEST).bfloat16().float()
    return torch.where(scale > 0, scale, 1.0)  # nothing but zeros: any scale will do


def quantize_linears(network: nn.Module, layers: Collection[str]) -> nn.Module:
    """Put an Fp8Linear without values in the place of each named layer, all of which are linear without bias.

    Args:
        network: changed in place.
        layers: whole names of modules.

    Returns:
        The network.
    """
    for name in layers:
        old = network.get_submodule(name)
        assert isinstance(old, nn.Linear), name
        assert old.bias is None, name
        with old.weight.device:
            network.set_submodule(name, Fp8Linear(old.in_features, old.out_features))
    return network
