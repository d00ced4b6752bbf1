# SPDX-License-Identifier: Apache-2.0
"""Whole generations at the real sizes, from random weights, with all networks on the GPU and warm.

Text encoder, conditioning frame, 36 guided steps, VAE decoder: each is timed by itself; what takes up to a minute is
then run as a whole, and of what takes longer the whole is their sum. The text encoder is ours in every row.

python -m benchmarks.engines.bench_workloads [WORKLOAD [KIND...]]
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from statistics import median

import torch
from torch import Tensor

from benchmarks.engines.generation import (
    KINDS,
    Kind,
    SolverStep,
    VaeHalves,
    decode,
    encode,
    our_vae,
    plain_vae,
    text_encoder,
)
from benchmarks.engines.random_networks import random_network
from benchmarks.headline import NUM_STEPS, WORKLOADS, Workload, floor_s
from benchmarks.results import record
from benchmarks.timing import Seconds, gpu_seconds
from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_runtime.sampler import Guidance
from predict2_runtime.schedule import SIGMA_MAX, Step, solver_steps
from predict2_spec.networks import LATENT_CHANNELS, VaeSpec

COMMAND = "make gpu"
TIMED_STEPS = 4
WHOLE_LIMIT_S = 60.0  # of a generation that is run from end to end
GUIDANCE = {"text2image": 4.0, "video2world": 7.0}  # the original's defaults


@dataclass(frozen=True)
class Parts:
    """The networks of one generation, and what it starts from."""

    text: Callable[[], Tensor]
    step: SolverStep
    vae: VaeHalves
    noise: Tensor  # [16, T, h, w]
    frames: Tensor | None  # the given one, [1, 3, 1, H, W]
    guidance: float
    dtype: torch.dtype  # of the networks

    def guide(self, embeds: Tensor) -> Guidance:
        """Without a negative prompt a picture is guided away from zeros."""
        negative = torch.zeros_like(embeds[0]) if self.frames is None else embeds[1]
        return Guidance(embeds[0], negative, self.guidance)

    def condition(self) -> Tensor | None:
        return None if self.frames is None else encode(self.vae, self.frames)

    def decode(self, latents: Tensor) -> list[Tensor]:
        return decode(self.vae, latents, self.dtype)


def make_parts(of: Workload, kind: Kind, like: Tensor) -> Parts:
    """All networks of a workload with random weights of the dtype and on the device of `like`."""
    preset, task = of.preset, of.task
    assert isinstance(preset.vae, VaeSpec)
    spec, latent = preset.dit(task), of.latent
    step = kind.step(random_network(partial(Dit, spec), like))
    vae = random_network(partial(Vae, preset.vae), like)
    noise = torch.randn(
        LATENT_CHANNELS, latent.frames, latent.height, latent.width, device=like.device
    )
    pixels = latent.pixels
    frames = like.new_empty(1, 3, 1, pixels.height, pixels.width).uniform_(-1, 1)
    return Parts(
        text_encoder(preset.text_encoder, like, kind.recorded),
        step,
        our_vae(vae, preset.vae, kind.recorded) if kind.ours else plain_vae(vae),
        SIGMA_MAX * noise,
        frames if spec.condition_mask else None,
        GUIDANCE[task],
        like.dtype,
    )


def generate(parts: Parts, num_steps: int) -> list[Tensor]:
    """From prompts to frames."""
    guidance, condition = parts.guide(parts.text()), parts.condition()
    latents, x0 = parts.noise, torch.zeros_like(parts.noise)
    for step in solver_steps(num_steps):
        latents, x0 = parts.step(step, latents, x0, guidance, condition)
    return parts.decode(latents)


def one_step(parts: Parts, num_steps: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """A step of a generation as a function without arguments, another one of the schedule at each call."""
    guidance, condition = parts.guide(parts.text()), parts.condition()
    before = torch.randn_like(parts.noise)
    steps: Iterator[Step] = cycle(solver_steps(num_steps))
    return lambda: parts.step(next(steps), parts.noise, before, guidance, condition)


def measure(
    of: Workload,
    kind: Kind,
    like: Tensor,
    num_steps: int = NUM_STEPS,
    whole_limit_s: float = WHOLE_LIMIT_S,
) -> dict[str, object]:
    """Time a workload's parts, and all of it."""
    count = len(solver_steps(num_steps))
    with torch.inference_mode():
        parts = make_parts(of, kind, like)
        if like.is_cuda:
            torch.cuda.reset_peak_memory_stats()  # loading takes more
        run = one_step(parts, num_steps)
        assert all(torch.isfinite(part).all() for part in run())  # this call compiles or records
        steps = gpu_seconds(run, runs=TIMED_STEPS, warmup=1)
        timed = partial(gpu_seconds, warmup=1, clocks=False)
        text = median(timed(parts.text, runs=3))
        encoding = median(timed(parts.condition, runs=3))
        decoding = median(timed(lambda: parts.decode(parts.noise), runs=2))
        whole = text + encoding + count * median(steps) + decoding
        is_run = whole <= whole_limit_s
        if is_run:
            whole = timed(lambda: generate(parts, num_steps), runs=1, warmup=0)[0]
    return {
        "workload": of.name,
        "engine": kind.name,
        "title": kind.title,
        "ours": kind.ours,
        "level": kind.level,
        "steps": count,
        **_of_steps(steps),
        "text_s": round(text, 6),
        "encode_s": round(encoding, 6) if parts.frames is not None else 0.0,
        "decode_s": round(decoding, 6),
        "whole_s": round(whole, 4),
        "whole": "run" if is_run else "sum",
        "published_s": of.published_s,
        "floor_s": round(floor_s(of), 4),
        "peak_bytes": torch.cuda.max_memory_allocated() if like.is_cuda else 0,
    }


def _of_steps(steps: Seconds) -> dict[str, object]:
    return {
        "step_s": round(median(steps), 6),
        "step_min_s": round(min(steps), 6),
        "step_max_s": round(max(steps), 6),
        "step_runs": len(steps),
        "clocks": steps.clocks,
    }


def main() -> None:
    """Measure and record what the arguments name, or everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("workload", nargs="?", choices=[of.name for of in WORKLOADS])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(k.name for k in KINDS))
    args = parser.parse_args()
    like = torch.empty((), device="cuda", dtype=torch.bfloat16)
    for of in WORKLOADS:
        for kind in KINDS:
            if args.workload in (None, of.name) and (not args.kinds or kind.name in args.kinds):
                record(f"generation {of.name}, {kind.title}", COMMAND, measure(of, kind, like))
                torch.compiler.reset()
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
