# SPDX-License-Identifier: Apache-2.0
"""Installing a stage as an engine of torch: its weights in one file, compared with the torch module on this machine."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.errors import InvalidRequestError
from predict2_spec.manifest import Manifest
from predict2_spec.networks import DitSpec, TextEncoderSpec, VaeSpec
from predict2_spec.presets import Preset

from .build_options import this_gpu
from .comparison import Choices, compare
from .current import is_current
from .fp8.dynamic import chosen_recipe
from .fp8.layers import Fp8Layers
from .installation import (
    Report,
    check_unchanged,
    copy_model,
    digest,
    recipe_key,
    replacing,
    stamps,
    versions,
    write_manifest,
)
from .recipes import Recipe
from .to_onnx import check_disk
from .to_torch import DTYPES, FILE, PRECISIONS, describe_graph, write_safetensors

KIND = "torch"
_NETWORKS = (DitSpec, TextEncoderSpec, VaeSpec)  # that the runtime has in torch
_FP8_SINCE = 89  # the architecture whose products take e4m3
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
    if fp8 and int(here.removeprefix("sm")) < _FP8_SINCE:
        raise InvalidRequestError(
            f"this GPU, {here}, has no products of 8-bit floats, which came with sm{_FP8_SINCE}; leave out --level fp8"
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
    name = recipe.network
    if choices.fp8 and isinstance(recipe.spec, DitSpec):
        recipe = replace(chosen_recipe(recipe, choices.fp8), device=choices.device)
    else:
        recipe = replace(recipe, precision=PRECISIONS[choices.dtype], device=choices.device)
    tell(f"reading {recipe.checkpoint}")
    before = stamps(recipe.files)
    checkpoint_sha256 = digest(recipe.weight_files)
    software = versions(_SOFTWARE)
    chosen = f"{KIND} {choices.dtype} {choices.cuda_graphs}"
    key = recipe_key(recipe, checkpoint_sha256, software, chosen, _CODE)
    if is_current(output / name / VERSION_FOLDER, name, key):
        copy_model(templates / name, output / name)
        tell("already built from this checkpoint, kept")
        return
    with replacing(output / name) as folder:
        copy_model(templates / name, folder)
        engine = folder / VERSION_FOLDER
        recipe.write_beside(engine)
        network, graphs = recipe.lowerable(choices.dtype)
        check_disk(engine, network, 1)
        tell(f"writing weights in {choices.dtype}")
        write_safetensors(recipe.weights(), engine / FILE, choices.dtype)
        manifest = Manifest(
            network=name,
            preset=preset.name,
            kind=KIND,
            precision=recipe.precision,
            device=recipe.device,
            checkpoint_sha256=checkpoint_sha256,
            recipe=key,
            versions=software,
            graphs={k: describe_graph(g, engine / FILE, choices.dtype) for k, g in graphs.items()},
            cuda_graphs=choices.cuda_graphs,
        )
        write_manifest(engine, manifest)
        compare(engine, recipe, Choices(onnxruntime=False), tell)
        check_unchanged(before)
