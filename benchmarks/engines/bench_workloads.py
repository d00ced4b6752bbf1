# SPDX-License-Identifier: Apache-2.0
"""Whole generations at the real sizes, from random weights: in plain torch, eager and compiled, and in our torch engine.

Plain torch is the original's arithmetic and the yardstick of the same run. A solver step is one guided prediction and the update; all
steps of a generation cost the same, so a few are timed and a generation is their median times their number, and the
VAE's decoding. Text encoder, guardrails and refiner are not in it.

python -m benchmarks.engines.bench_workloads [NAME...]
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.report import record, summary
from benchmarks.timing import gpu_seconds
from predict2_export.checkpoint.fp8 import quantized
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.fp8.layers import DEFAULT_LAYERS
from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_runtime.sampler import Guidance, Velocity, guided_x0, update
from predict2_runtime.schedule import solver_steps
from predict2_runtime.torch_networks.denoiser import TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.products import Fp8Weight, Weight
from predict2_runtime.torch_networks.vae import VaeGraph, decoder
from predict2_runtime.torch_networks.vae import decode as run_decoder
from predict2_spec.networks import LATENT_CHANNELS, VaeSpec
from predict2_spec.presets import Preset, Task, find_preset
from predict2_spec.video import LatentShape, VideoShape

COMMAND = "make gpu"
NUM_STEPS = 35  # the original's default; one more prediction ends it
TIMED_STEPS = 4


@dataclass(frozen=True)
class Workload:
    """One generation, as people ask for it."""

    preset: str
    task: Task
    published_s: float  # of the original on one H200 SXM, by its own performance page, refiner and guardrails included

    @property
    def name(self) -> str:
        return f"{self.preset}-{self.task}"

    def latent(self, preset: Preset) -> LatentShape:
        width, height = preset.size(self.task, "16:9")
        return VideoShape(preset.max_frames(self.task), height, width).latent


WORKLOADS = (
    Workload("2b-480p-16fps", "text2image", 9.02),
    Workload("2b-480p-16fps", "video2world", 50.2),
    Workload("2b-720p-16fps", "video2world", 221.7),
    Workload("14b-480p-16fps", "text2image", 15.96),
    Workload("14b-480p-16fps", "video2world", 176.19),
    Workload("14b-720p-16fps", "video2world", 836.9),
)


# (latents [B, 16, 1, h, w], what the chunk before left or None) -> (frames, what the next one needs)
ChunkDecoder = Callable[[Tensor, Any], tuple[Tensor, Any]]


def plain(dit: torch.nn.Module) -> Velocity:
    """A network in its own dtype between float32 states, as the original calls it."""
    dtype = next(dit.parameters()).dtype

    def velocity(latents: Tensor, time: Tensor, embeds: Tensor, mask: Tensor | None) -> Tensor:
        masks = () if mask is None else (mask.to(dtype),)
        return dit(latents.to(dtype), time.to(dtype), embeds.to(dtype), *masks).float()

    return velocity


def solver_step(
    velocity: Velocity, preset: Preset, task: Task, latent: LatentShape, device: str
) -> Callable[[], tuple[Tensor, Tensor]]:
    """One step of a generation from random numbers, as a function without arguments."""
    spec, tokens = preset.dit(task), preset.text_encoder.num_tokens
    shape = (LATENT_CHANNELS, latent.frames, latent.height, latent.width)
    latents, previous = torch.randn(2, *shape, device=device)
    text = torch.randn(2, tokens, spec.text_width, device=device)
    negative = torch.zeros_like(text[0]) if task == "text2image" else text[1]
    guidance = Guidance(text[0], negative, 7.0)
    condition = torch.randn_like(latents[:, :1]) if spec.condition_mask else None
    step = solver_steps(NUM_STEPS)[NUM_STEPS // 2]

    def run() -> tuple[Tensor, Tensor]:
        x0 = guided_x0(velocity, latents, step.sigma, guidance, condition)
        return update(step, latents, x0, previous), x0

    return run


def decode(chunk_decoder: ChunkDecoder, latent: LatentShape, like: Tensor) -> Tensor:
    """All frames of a random clip, a latent frame at a time; the last frames come back."""
    caches, frames = None, torch.empty(0)
    shape = (1, LATENT_CHANNELS, 1, latent.height, latent.width)
    for _ in range(latent.frames):
        frames, caches = chunk_decoder(like.new_empty(shape).normal_(), caches)
    return frames


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


def our_velocity(dit: Dit, recorded: int = 0, fp8: bool = False) -> Velocity:
    """The torch engine with a network's weights, recording CUDA graphs of so many shapes."""
    read = in_fp8(dit) if fp8 else dit.state_dict().__getitem__
    engine = TorchDit(dit_weights(dit.spec, read), recorded)

    def velocity(latents: Tensor, time: Tensor, embeds: Tensor, mask: Tensor | None) -> Tensor:
        given = dict(zip(engine.inputs, (latents, time, embeds, mask), strict=False))
        return engine(given)["velocity"].float()

    return velocity


def our_decoder(vae: Vae, spec: VaeSpec) -> ChunkDecoder:
    """The torch engine's decoder with a network's weights."""
    half = decoder(spec, vae.state_dict().__getitem__)
    first, following = (
        VaeGraph(half, run_decoder, ("latents", "frames"), following=f) for f in (False, True)
    )

    def run(chunk: Tensor, caches: Mapping[str, Tensor] | None) -> tuple[Tensor, dict[str, Tensor]]:
        outputs = (first if caches is None else following)({"latents": chunk, **(caches or {})})
        kept = {k.removeprefix("next_"): v for k, v in outputs.items() if k.startswith("next_")}
        return outputs["frames"], kept

    return run


ENGINES: dict[str, tuple[Callable[[Dit], Velocity], Callable[[Vae, VaeSpec], ChunkDecoder]]] = {
    "torch eager": (plain, lambda vae, _: vae.decode_chunk),
    "torch.compile": (lambda dit: plain(torch.compile(dit)), lambda vae, _: vae.decode_chunk),
    "torch engine": (our_velocity, our_decoder),
    "torch engine, recorded": (lambda dit: our_velocity(dit, recorded=1), our_decoder),
    "torch engine fp8, recorded": (lambda dit: our_velocity(dit, 1, fp8=True), our_decoder),
}


def measure(of: Workload, name: str) -> None:
    """Time a workload on one of the engines and record it."""
    preset = find_preset(of.preset)
    latent = of.latent(preset)
    make_velocity, make_decoder = ENGINES[name]
    with torch.inference_mode():
        dit = Dit(preset.dit(of.task)).to("cuda", torch.bfloat16).eval().requires_grad_(False)
        run = solver_step(make_velocity(dit), preset, of.task, latent, "cuda")
        assert all(torch.isfinite(part).all() for part in run())
        steps = gpu_seconds(run, runs=TIMED_STEPS, warmup=1)
        del run, dit
        vae = Vae(preset.vae).to("cuda", torch.bfloat16).eval()
        like, chunks = vae.conv2.weight, make_decoder(vae, preset.vae)
        decoding = median(gpu_seconds(lambda: decode(chunks, latent, like), runs=2, warmup=1))
    count = len(solver_steps(NUM_STEPS))
    values = summary(steps)
    whole = count * values["median_s"] + decoding
    note = f"{count} steps and {decoding:.2f} s of decoding: {whole:.2f} s; the original's page says {of.published_s} s"
    record(f"solver step, {of.name}, {name}", COMMAND, {**values, "note": note})


def main() -> None:
    """Measure the workloads whose names were given, or all."""
    wanted = sys.argv[1:]
    for of in WORKLOADS:
        if not wanted or of.name in wanted:
            for name in ENGINES:
                measure(of, name)
                torch.compiler.reset()
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
