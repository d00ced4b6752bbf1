# SPDX-License-Identifier: Apache-2.0
"""The measured engine: our networks in torch on an NVIDIA GPU, with our kernels; on a CPU in plain torch."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# A server holds many processes and runs one at a time: threads that spin while they wait would take the cores from the
# one that works. Read when torch is loaded, and by nothing that is loaded before.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from safetensors import SafetensorError, safe_open

from predict2_runtime.torch_networks.denoiser import TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.kept import Kept
from predict2_runtime.torch_networks.products import Fp8Weight
from predict2_runtime.torch_networks.step import TorchStep
from predict2_runtime.torch_networks.text_encoder import TorchTextEncoder, text_encoder_weights
from predict2_runtime.torch_networks.vae import VaeGraph, decode, decoder, encode, encoder
from predict2_spec.errors import EngineMismatchError, InvalidRequestError
from predict2_spec.manifest import Manifest
from predict2_spec.networks import VaeSpec
from predict2_spec.presets import Preset, Task, find_preset
from predict2_spec.tensors import (
    TEXT2IMAGE_DENOISER,
    TEXT_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
    VIDEO2WORLD_DENOISER,
)

from . import Engine, InstalledEngine
from .fit import check_architecture, check_names
from .torch_arrays import placement

Read = Callable[[str], Any]  # a weight by its name, on its device; in 8 bits with its scales
SCALE = ".weight_scale"  # what a layer in 8 bits has beside its weight: float32, one for each row
Graphs = dict[str, tuple[Engine, tuple[str, ...]]]  # with the names of their inputs


def open_torch(folder: Path, manifest: Manifest) -> InstalledEngine:
    """Put the weights of an installed engine onto the device that it was built for, straight from their file.

    Args:
        folder: where the file is.
        manifest: the engine's.

    Raises:
        EngineMismatchError: the device isn't here, the file is damaged or not this network's, or no torch engine runs
            the network. The message has the command that builds it again.
    """
    if manifest.network not in _NETWORKS:
        raise EngineMismatchError(
            f"no torch engine runs {manifest.network}; they run {', '.join(_NETWORKS)}. Build it again: "
            f"{manifest.rebuild_command}"
        )
    device = find_device(manifest)
    path = folder / next(iter(manifest.graphs.values())).file
    try:
        preset = find_preset(manifest.preset)
        with safe_open(path, framework="pt", device=str(device)) as file:
            graphs = _NETWORKS[manifest.network](
                manifest, preset, partial(_read, file, set(file.keys()))
            )
    except (SafetensorError, OSError, RuntimeError, InvalidRequestError) as error:
        raise EngineMismatchError(
            f"torch {torch.__version__} can't take {path} for {manifest.network} of preset {manifest.preset}: {error}. "
            f"Build it again: {manifest.rebuild_command}"
        ) from error
    for name in manifest.graphs:
        check_names(manifest, name, graphs[name][1])
    # A denoiser offers its solver step besides, which the same weights make.
    return InstalledEngine(
        manifest, {k: graph for k, (graph, _) in graphs.items()}, placement(device)
    )


def _read(file: Any, names: set[str], name: str) -> Any:
    weight = file.get_tensor(name)
    scales = name.removesuffix(".weight") + SCALE
    return Fp8Weight(weight, file.get_tensor(scales)) if scales in names else weight


def find_device(manifest: Manifest) -> torch.device:
    """Where an engine computes.

    Raises:
        EngineMismatchError: it was built for a GPU, and there is none of its architecture.
    """
    if manifest.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise EngineMismatchError(
            f"{manifest.network} needs a CUDA GPU of {manifest.device}, and torch {torch.__version__} finds none. An "
            f"engine for the CPU: predict2-export build --preset {manifest.preset} --only {manifest.network} --kind torch"
        )
    device = torch.device("cuda", torch.cuda.current_device())
    major, minor = torch.cuda.get_device_capability(device)
    check_architecture(manifest, f"sm{major}{minor}")
    # Engines in float32 promise all its bits, of which torch's convolutions would drop 13.
    torch.backends.cudnn.allow_tf32 = False
    return device


def _recorded(manifest: Manifest) -> int:
    """CUDA graphs that each graph of the engine may keep."""
    return 0 if manifest.device == "cpu" else manifest.cuda_graphs


def _denoiser(manifest: Manifest, preset: Preset, read: Read) -> Graphs:
    task: Task = "text2image" if manifest.network == TEXT2IMAGE_DENOISER.name else "video2world"
    spec = preset.dit(task)
    if spec.neighborhoods:
        raise InvalidRequestError(
            "its attention is sparse, which no engine of this version runs; take the preset without -sparse"
        )
    kept, recorded = Kept(dit_weights(spec, read)), _recorded(manifest)
    engine, step = TorchDit(kept, recorded), TorchStep(kept, recorded)
    return {"main": (engine, engine.inputs), "step": (step, step.inputs)}


def _vae(manifest: Manifest, preset: Preset, read: Read) -> Graphs:
    if not isinstance(preset.vae, VaeSpec):
        raise InvalidRequestError("its image tokenizer is a program, which ONNX Runtime runs")
    if manifest.network == VAE_ENCODER.name:
        graph = partial(VaeGraph, encoder(preset.vae, read), encode, ("frames", "latents"))
    else:
        graph = partial(VaeGraph, decoder(preset.vae, read), decode, ("latents", "frames"))
    first, following = (graph(following=f, recorded=_recorded(manifest)) for f in (False, True))
    return {"first": (first, first.inputs), "next": (following, following.inputs)}


def _text_encoder(manifest: Manifest, preset: Preset, read: Read) -> Graphs:
    weights = text_encoder_weights(preset.text_encoder, read)
    engine = TorchTextEncoder(weights, _recorded(manifest))
    return {"main": (engine, engine.inputs)}


_NETWORKS = {
    TEXT_ENCODER.name: _text_encoder,
    VAE_ENCODER.name: _vae,
    VAE_DECODER.name: _vae,
    TEXT2IMAGE_DENOISER.name: _denoiser,
    VIDEO2WORLD_DENOISER.name: _denoiser,
}
