# SPDX-License-Identifier: Apache-2.0
"""A denoiser whose FP8 layers find the scale of each token themselves: nothing to calibrate. For engines of torch."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial

from torch import nn

from predict2_export.checkpoint.fp8 import quantized
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.recipes import Recipe
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import DitSpec

from .dynamic_linear import DynamicFp8Linear
from .layers import Fp8Layers
from .recipe import FP8

# They multiply the same input and are one product.
_TOGETHER = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("cross_attn.k_proj", "cross_attn.v_proj"))  # fmt: skip


@dataclass(frozen=True)
class DynamicFp8Recipe(Recipe):
    """One denoiser to build in FP8 for torch."""

    exact: Recipe = field(kw_only=True)
    layers: tuple[str, ...] = field(kw_only=True)  # in FP8, by their whole names

    @property
    def choices(self) -> str:
        """Also the layers."""
        return f"{super().choices} {self.layers}"

    def weights(self) -> dict[str, StoredTensor]:
        """The values of the module's parameters, rounded to FP8 when they are read."""
        return dict(_without_input_scales(quantized(self.exact.weights(), dict.fromkeys(self.layers, 1.0))))  # fmt: skip


def _without_input_scales(
    weights: Mapping[str, StoredTensor],
) -> Iterator[tuple[str, StoredTensor]]:
    return ((key, value) for key, value in weights.items() if not key.endswith(".input_scale"))


def dynamic_recipe(exact: Recipe, layers: Collection[str]) -> DynamicFp8Recipe:
    """The FP8 counterpart of a denoiser's recipe.

    Args:
        exact: the denoiser's.
        layers: whole names of those in FP8.

    Raises:
        InvalidRequestError: of layers that are one product, some are chosen and some not.
    """
    assert isinstance(exact.spec, DitSpec)
    for block in range(exact.spec.num_blocks):
        for group in _TOGETHER:
            chosen = [name for name in group if f"blocks.{block}.{name}" in layers]
            if chosen and len(chosen) < len(group):
                raise InvalidRequestError(
                    f"{', '.join(group)} are one product in torch, and {', '.join(chosen)} alone was chosen for FP8; "
                    "choose all of them or none"
                )
    same = {f.name: getattr(exact, f.name) for f in fields(exact)}
    own = {
        "make": partial(_network, exact, tuple(layers)),
        "limits": FP8,
        "precision": "fp8",
        "exact": exact,
        "layers": tuple(layers),
    }
    return DynamicFp8Recipe(**(same | own))


def chosen_recipe(exact: Recipe, layers: Fp8Layers) -> DynamicFp8Recipe:
    """The FP8 counterpart of a denoiser's recipe, by the owner's choice of layers."""
    assert isinstance(exact.spec, DitSpec)
    return dynamic_recipe(exact, layers.names(exact.spec))


def _network(exact: Recipe, layers: Collection[str]) -> nn.Module:
    network = exact.make()
    for name in layers:
        old = network.get_submodule(name)
        assert isinstance(old, nn.Linear), name
        with old.weight.device:
            network.set_submodule(name, DynamicFp8Linear(old.in_features, old.out_features))
    return network
