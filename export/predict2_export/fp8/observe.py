# SPDX-License-Identifier: Apache-2.0
"""The largest magnitudes that reach layers, found by NVIDIA's quantizer. Nothing else of it is used."""

import warnings
from collections.abc import Callable, Collection
from importlib.metadata import version
from typing import Any

from torch import nn

from predict2_spec.errors import CheckpointError, Predict2Error

_PACKAGE = "nvidia-modelopt"


def quantizer_version() -> str:
    """The version of the installed quantizer.

    Raises:
        Predict2Error: it isn't installed, or doesn't load.
    """
    _quantizer()
    return version(_PACKAGE)


def input_amax(
    network: nn.Module, layers: Collection[str], run: Callable[[nn.Module], None]
) -> dict[str, float]:
    """The largest magnitude of each layer's input while `run` calls the network.

    Args:
        network: spoilt by it: the quantizer puts classes of its own in place of its layers.
        layers: whole names of linear layers.
        run: is given the network, and calls it with everything that counts.

    Returns:
        Layer -> magnitude; of every layer asked for and of no other.

    Raises:
        CheckpointError: an input was NaN or infinite.
        Predict2Error: the quantizer isn't installed, or observed other layers than it was told.
    """
    quantization = _quantizer()
    # Its ready-made configurations leave out layers by name, some of which are ours. Weights aren't observed: their
    # largest values can be had without it, when the engine is made.
    static = {"num_bits": (4, 3), "axis": None}
    entries = [
        {"quantizer_name": "*", "enable": False},
        *({"quantizer_name": f"{name}.input_quantizer", "cfg": static} for name in layers),
    ]
    try:
        quantization.quantize(network, {"quant_cfg": entries, "algorithm": "max"}, run)
    except AssertionError as error:  # which is how it refuses what is no number
        raise CheckpointError(
            f"{_PACKAGE} can't measure this network ({error}); see whether it makes pictures at the level exact, and get "
            "its checkpoint again if it doesn't"
        ) from error
    found = {
        name.removesuffix(".input_quantizer"): float(module.amax)
        for name, module in network.named_modules()
        if type(module).__name__ == "TensorQuantizer"
        and module.is_enabled
        and module.amax is not None  # it was never called
    }
    if found.keys() != set(layers):
        wrong = sorted(found.keys() ^ set(layers))
        raise Predict2Error(
            f"{_PACKAGE} {version(_PACKAGE)} observed {len(found)} layers instead of {len(layers)}, they differ in "
            f"{wrong[0]}; install the version that docs/export.md names"
        )
    return found


def _quantizer() -> Any:
    try:
        with warnings.catch_warnings():  # about versions of packages that this doesn't use
            warnings.simplefilter("ignore")
            import modelopt.torch.quantization as quantization  # takes seconds
    except ImportError as error:
        raise Predict2Error(
            f"{_PACKAGE} can't be used here ({error}); pip install 'cosmos-predict2-triton[fp8]', or give the "
            "calibration that another machine made with --calibration"
        ) from error
    return quantization
