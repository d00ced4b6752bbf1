# SPDX-License-Identifier: Apache-2.0
"""How far the level fp8 takes latents from the level exact, and how far exact is from plain torch: random weights, real sizes.

A few solver steps from the highest noise to none, the same noise and prompts for each. Random weights say what rounding
does to a network of this width and depth; what it does to pictures is `make quality`'s.

python -m benchmarks.engines.bench_levels [WORKLOAD...]
"""

import sys
from functools import partial

import torch
from torch import Tensor

from benchmarks.engines.bench_workloads import GUIDANCE
from benchmarks.engines.generation import SolverStep, our_step, plain
from benchmarks.engines.random_networks import random_network
from benchmarks.headline import WORKLOADS, Workload
from benchmarks.results import record
from predict2_export.networks.dit import Dit
from predict2_runtime.sampler import Guidance
from predict2_runtime.schedule import SIGMA_MAX, solver_steps
from predict2_spec.networks import LATENT_CHANNELS

COMMAND = "make gpu"
NUM_STEPS = 4  # and the clean one
NAMES = ("2b-480p-16fps-text2image", "2b-480p-16fps-video2world")


def trajectory(step: SolverStep, of: Workload, like: Tensor) -> list[Tensor]:
    """The guided prediction of every step, the last of which is the answer: [16, T, h, w] each."""
    preset, spec, latent = of.preset, of.preset.dit(of.task), of.latent
    torch.manual_seed(1)
    shape = (LATENT_CHANNELS, latent.frames, latent.height, latent.width)
    options = {"device": like.device, "dtype": torch.float32}
    latents, x0 = SIGMA_MAX * torch.randn(shape, **options), torch.zeros(shape, **options)
    text = torch.randn(2, preset.text_encoder.num_tokens, spec.text_width, **options)
    negative = text[1] if spec.condition_mask else torch.zeros_like(text[1])
    guidance = Guidance(text[0], negative, GUIDANCE[of.task])
    condition = torch.randn(shape[0], 1, *shape[2:], **options) if spec.condition_mask else None
    found = []
    for entry in solver_steps(NUM_STEPS):
        latents, x0 = step(entry, latents, x0, guidance, condition)
        found.append(x0)
    return found


def cosine(a: Tensor, b: Tensor) -> float:
    """Of all numbers of two tensors, in float64."""
    a, b = a.flatten().double(), b.flatten().double()
    return float(a @ b / (a.norm() * b.norm()))


def measure(of: Workload, like: Tensor) -> dict[str, object]:
    """Cosines between the answers of plain torch and the engine's levels exact and fp8."""
    with torch.inference_mode():
        torch.manual_seed(0)
        dit = random_network(partial(Dit, of.preset.dit(of.task)), like)
        by_torch = trajectory(plain(dit), of, like)
        exact = trajectory(our_step(dit), of, like)
        fp8 = trajectory(our_step(dit, fp8=True), of, like)
    assert all(torch.isfinite(x).all() for x in (*by_torch, *exact, *fp8))
    return {
        "workload": of.name,
        "solver_steps": len(exact),
        "exact_cosine": round(cosine(by_torch[-1], exact[-1]), 6),
        "fp8_cosine": round(cosine(exact[-1], fp8[-1]), 6),
        "fp8_cosine_of_steps": [round(cosine(*pair), 6) for pair in zip(exact, fp8, strict=True)],
    }


def main() -> None:
    """Measure and record what the arguments name."""
    wanted = sys.argv[1:] or NAMES
    like = torch.empty((), device="cuda", dtype=torch.bfloat16)
    for of in WORKLOADS:
        if of.name in wanted:
            record(f"level.fp8 {of.name}", COMMAND, measure(of, like))


if __name__ == "__main__":
    main()
