# SPDX-License-Identifier: Apache-2.0
"""Installing a stage as an engine of torch: its weights in one file, compared with the torch module on this machine."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import DitSpec, TextEncoderSpec, VaeSpec
from predict2_spec.presets import Preset

from .build_options import FP8_SINCE, this_gpu
from .comparison import Choices, compare
from .current import is_current
from .fp8.dynamic import chosen_recipe
from .fp8.layers import Fp8Layers
from .installation import (
    EngineKind,
    Report,
    build_engine,
)
from .recipes import Recipe
from .to_onnx import check_disk
from .to_torch import DTYPES, FILE, PRECISIONS, describe_graph, write_safetensors

KIND = "torch"
_NETWORKS = (DitSpec, TextEncoderSpec, VaeSpec)  # that the runtime has in torch
_SOFTWARE = ("cosmos-predict2-triton", "torch", "safetensors")
# That shapes these engines besides what shapes all
_CODE = ("to_torch.py", "fp8/dynamic.py", "fp8/dynamic_linear.py")


@dataclass(frozen=True)
class TorchChoices:
    """How engines of torch are built."""

    dtype: torch.dtype
    device: str  # cpu, or the GPU's architecture, such as sm90
    cuda_graphs: int = 0  # shapes whose launches are recorded
    fp8: Fp8Layers | None = None  # of the denoisers; None is the level exact


def in_torch(recipe: Recipe) -> bool:
    """Whether torch can run a stage; the others stay ONNX Runtime's."""
    return isinstance(recipe.spec, _NETWORKS)


def torch_choices(
    device: str, dtype: str = "", cuda_graphs: int = 0, fp8: Fp8Layers | None = None
) -> TorchChoices:
    """What the owner's flags come to on this machine.

    Args:
        device: cpu or cuda.
        dtype: float32 or bfloat16; empty: bfloat16 on a GPU, float32 on a CPU.
        cuda_graphs: shapes whose launches are recorded.
        fp8: the denoisers' layers in 8 bits, if the level is fp8.

    Raises:
        InvalidRequestError: there is no GPU here, or nothing that could be recorded, or a GPU can't compute so.
    """
    chosen = DTYPES[dtype or ("bfloat16" if device == "cuda" else "float32")]
    if device == "cpu":
        if cuda_graphs:
            raise InvalidRequestError(
                f"--cuda-graphs {cuda_graphs} needs a GPU; add --device cuda, or leave it out"
            )
        return TorchChoices(chosen, "cpu", fp8=fp8)
    if fp8 and chosen != torch.bfloat16:
        raise InvalidRequestError(
            f"on a GPU products of 8 bits come out in bfloat16, not in {chosen}; leave out --dtype"
        )
    here = this_gpu()
    if not here:
        raise InvalidRequestError(
            f"an engine is compared with torch where it shall run, and torch {torch.__version__} finds no GPU here; "
            "build it on the machine with the GPU, or with --device cpu"
        )
    if fp8 and int(here.removeprefix("sm")) < FP8_SINCE:
        raise InvalidRequestError(
            f"this GPU, {here}, has no products of 8-bit floats, which came with sm{FP8_SINCE}; leave out --level fp8"
        )
    return TorchChoices(chosen, here, cuda_graphs, fp8)


def build_torch_stage(  # the recipe and whom to tell come last, as `install` gives them
    preset: Preset, templates: Path, output: Path, choices: TorchChoices, recipe: Recipe, tell: Report
) -> None:  # fmt: skip
    """Install one stage that is `in_torch` in `output`, unless it is there.

    Raises:
        CheckpointError: the weights are damaged or another network's.
        VerificationError: the engine's answers are not the torch module's; it isn't installed.
    """
    if choices.fp8 and isinstance(recipe.spec, DitSpec):
        recipe = replace(chosen_recipe(recipe, choices.fp8), device=choices.device)
    else:
        recipe = replace(recipe, precision=PRECISIONS[choices.dtype], device=choices.device)

    def make(engine: Path, tell: Report) -> dict[str, Any]:
        network, graphs = recipe.lowerable(choices.dtype)
        check_disk(engine, network, 1)
        tell(f"writing weights in {choices.dtype}")
        write_safetensors(recipe.weights(), engine / FILE, choices.dtype)
        described = {k: describe_graph(g, engine / FILE, choices.dtype) for k, g in graphs.items()}
        return {"graphs": described, "cuda_graphs": choices.cuda_graphs}

    def verify(engine: Path, tell: Report) -> None:
        compare(engine, recipe, Choices(onnxruntime=False), tell)

    chosen = f"{KIND} {choices.dtype} {choices.cuda_graphs}"
    kind = EngineKind(KIND, _SOFTWARE, is_current, make, verify, chosen=chosen, code=_CODE)
    build_engine(preset, recipe, templates, output, kind, tell)
