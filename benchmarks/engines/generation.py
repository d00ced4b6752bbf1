# SPDX-License-Identifier: Apache-2.0
"""A whole generation in parts that can be timed: in plain torch, eager and compiled, and in our torch engine.

Plain torch is the original's arithmetic in export's modules, and the yardstick of the same run. Prompt refiner and
guardrails are not in it.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.engines.random_networks import text_encoder_reader
from predict2_export.checkpoint.fp8 import quantized
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.fp8.layers import DEFAULT_LAYERS
from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_runtime.sampler import Guidance, Velocity, guided_x0, update
from predict2_runtime.schedule import Step
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.kept import Kept
from predict2_runtime.torch_networks.products import Fp8Weight, Weight
from predict2_runtime.torch_networks.step import TorchStep
from predict2_runtime.torch_networks.text_encoder import TorchTextEncoder, text_encoder_weights
from predict2_runtime.torch_networks.vae import VaeGraph, decoder, encoder
from predict2_runtime.torch_networks.vae import decode as run_decoder
from predict2_runtime.torch_networks.vae import encode as run_encoder
from predict2_spec.networks import TextEncoderSpec, VaeSpec
from predict2_spec.video import TEMPORAL_STRIDE

# (solver's step, latents, x0 of the step before, guidance, latents of the given frames) -> latents, x0
SolverStep = Callable[[Step, Tensor, Tensor, Guidance, Tensor | None], tuple[Tensor, Tensor]]
# (chunk, what the chunk before left or None) -> (result, what the next one needs)
Chunk = Callable[[Tensor, Any], tuple[Tensor, Any]]


@dataclass(frozen=True)
class Kind:
    """One way to compute all of it."""

    name: str  # on the command line and in results
    title: str
    level: Literal["exact", "fp8"]
    ours: bool
    step: Callable[[Dit], SolverStep]
    recorded: int = 0  # CUDA graphs of a shape each, of every stage


@dataclass(frozen=True)
class VaeHalves:
    """Both halves of a VAE, chunk by chunk."""

    encode: Chunk
    decode: Chunk


def by_velocity(velocity: Velocity) -> SolverStep:
    """A solver step around a network."""

    def run(
        step: Step, latents: Tensor, before: Tensor, guidance: Guidance, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x0 = guided_x0(velocity, latents, step.sigma, guidance, condition)
        return update(step, latents, x0, before), x0

    return run


def plain(
    dit: Dit, compiled: bool = False, attention: SDPBackend | None = None
) -> SolverStep:  # fmt: skip
    """A network in its own dtype between float32 states, as the original calls it.

    Args:
        dit: the network.
        compiled: by torch.compile.
        attention: torch's backend for it; None leaves torch the choice.
    """
    dtype = next(dit.parameters()).dtype
    call = torch.compile(dit) if compiled else dit

    def velocity(latents: Tensor, time: Tensor, embeds: Tensor, mask: Tensor | None) -> Tensor:
        masks = () if mask is None else (mask.to(dtype),)
        with nullcontext() if attention is None else sdpa_kernel(attention):
            return call(latents.to(dtype), time.to(dtype), embeds.to(dtype), *masks).float()

    return by_velocity(velocity)


def in_fp8(dit: Dit) -> Callable[[str], Weight]:
    """Reads a network's weights, those of the level fp8 as it stores them."""
    device = next(dit.parameters()).device
    state = {
        name: StoredTensor(tuple(value.shape), value.dtype, lambda value=value: value)
        for name, value in dit.state_dict().items()
    }
    stored = quantized(state, dict.fromkeys(DEFAULT_LAYERS.names(dit.spec), 1.0))

    def read(name: str) -> Weight:
        value = stored[name].load().to(device)
        scales = stored.get(f"{name}_scale")
        return value if scales is None else Fp8Weight(value, scales.load().to(device))

    return read


def our_step(dit: Dit, recorded: int = 0, fp8: bool = False) -> SolverStep:
    """The torch engine with a network's weights, recording CUDA graphs of so many shapes."""
    read = in_fp8(dit) if fp8 else dit.state_dict().__getitem__
    weights = dit_weights(dit.spec, read)
    engine = TorchStep(Kept(weights), recorded if weights.patch.is_cuda else 0)

    def run(
        step: Step, latents: Tensor, before: Tensor, guidance: Guidance, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        tensors = {
            "latents": latents,
            "previous_x0": before,
            "prompt_embeds": guidance.prompt_embeds,
            "negative_prompt_embeds": guidance.negative_prompt_embeds,
            "condition_latents": condition,
        }
        given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        outputs = engine({**given, **step.numbers(guidance.scale)})
        return outputs["latents"], outputs["x0"]

    return run


_CUDNN = SDPBackend.CUDNN_ATTENTION
KINDS = (
    Kind("eager", "torch eager", "exact", False, plain),
    Kind("compiled", "torch.compile", "exact", False, partial(plain, compiled=True)),
    Kind(
        "compiled-cudnn",
        "torch.compile, cuDNN attention",
        "exact",
        False,
        partial(plain, compiled=True, attention=_CUDNN),
    ),
    Kind("engine", "torch engine", "exact", True, our_step),
    Kind("recorded", "torch engine, recorded", "exact", True, partial(our_step, recorded=1), 1),
    Kind("recorded-fp8", "torch engine fp8, recorded", "fp8", True, partial(our_step, recorded=1, fp8=True), 1),
)  # fmt: skip


def plain_vae(vae: Vae) -> VaeHalves:
    """Export's module."""
    return VaeHalves(vae.encode_chunk, vae.decode_chunk)


def our_vae(vae: Vae, spec: VaeSpec, recorded: int = 0) -> VaeHalves:
    """The torch engine with a network's weights, recording CUDA graphs of so many shapes."""
    read = vae.state_dict().__getitem__
    graphs = recorded if vae.mean.is_cuda else 0

    def chunks(half: Any, run: Any, source: str, result: str) -> Chunk:
        first, following = (
            VaeGraph(half, run, (source, result), following=later, recorded=graphs)
            for later in (False, True)
        )

        def call(chunk: Tensor, caches: Any) -> tuple[Tensor, dict[str, Tensor]]:
            outputs = (first if caches is None else following)({source: chunk, **(caches or {})})
            return outputs.pop(result), {k.removeprefix("next_"): v for k, v in outputs.items()}

        return call

    return VaeHalves(
        chunks(encoder(spec, read), run_encoder, "frames", "latents"),
        chunks(decoder(spec, read), run_decoder, "latents", "frames"),
    )


def streamed(chunk: Chunk, parts: Iterable[Tensor]) -> list[Tensor]:
    """What a half makes of each part of a clip in turn."""
    caches, results = None, []
    for part in parts:
        result, caches = chunk(part, caches)
        results.append(result)
    return results


def encode(vae: VaeHalves, frames: Tensor) -> Tensor:
    """Frames [1, 3, 1 + 4k, H, W] -> latents [16, 1 + k, h, w]."""
    parts = [frames[:, :, :1], *frames[:, :, 1:].split(TEMPORAL_STRIDE, dim=2)]
    return torch.cat(streamed(vae.encode, [p for p in parts if p.shape[2]]), dim=2)[0].float()


def decode(vae: VaeHalves, latents: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Latents [16, T, h, w] -> frames [1, 3, 1 or 4, H, W] of each, on the device."""
    return streamed(vae.decode, latents[None].to(dtype).split(1, dim=2))


def text_encoder(spec: TextEncoderSpec, like: Tensor, recorded: int = 0) -> Callable[[], Tensor]:
    """Encodes two prompts of random tokens that fill their rows: [2, N, D]."""
    weights = text_encoder_weights(spec, text_encoder_reader(spec, like))
    engine = TorchTextEncoder(weights, recorded if like.is_cuda else 0)
    ids = torch.randint(1, spec.vocab_size, (2, spec.num_tokens), device=like.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return lambda: engine(inputs)["prompt_embeds"].float()
