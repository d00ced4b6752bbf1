# SPDX-License-Identifier: Apache-2.0
"""A guided solver step of the torch engine: both rows through each layer together, and one after the other.

Together, weights are read once, and all up to the first cross-attention is computed once; apart, half as much lies in
the caches, and the row without a prompt leaves out cross-attention as a whole. The engine's default is what wins.

python -m benchmarks.engines.bench_batching [toy]        toy: on the CPU, to try it out
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.engines.random_networks import random_network
from benchmarks.headline import WORKLOADS, Workload
from benchmarks.results import record, summary
from benchmarks.timing import gpu_seconds
from predict2_export.networks.dit import Dit
from predict2_runtime.schedule import solver_steps
from predict2_runtime.torch_networks.dit import DitWeights, dit_weights
from predict2_runtime.torch_networks.kept import Kept, Savings
from predict2_runtime.torch_networks.step import TorchStep
from predict2_spec.networks import LATENT_CHANNELS

COMMAND = "make gpu"
CASES = WORKLOADS[:4]
WAYS = {"together": Savings(), "one after the other": Savings(batched=False)}
STEP, SCALE = solver_steps(35)[7], 7.0


def step_of(of: Workload, weights: DitWeights, savings: Savings) -> Callable[[], Tensor]:
    """A recorded step from random numbers: pictures with a negative prompt of zeros, clips with another prompt."""
    device, shape = weights.patch.device, of.latent
    engine = TorchStep(Kept(weights, savings), recorded=int(device.type == "cuda"))
    generator = torch.Generator(device).manual_seed(0)
    state = LATENT_CHANNELS, shape.frames, shape.height, shape.width
    text = of.preset.text_encoder.num_tokens, weights.spec.text_width
    normal = partial(torch.randn, generator=generator, device=device)
    inputs = {
        "latents": normal(state),
        "previous_x0": normal(state),
        "prompt_embeds": normal(text),
        "negative_prompt_embeds": normal(text),
    }
    if weights.spec.condition_mask:
        inputs["condition_latents"] = inputs["previous_x0"][:, :1]
    else:
        inputs["negative_prompt_embeds"] = torch.zeros(text, device=device)
    return lambda: engine({**inputs, **STEP.numbers(SCALE)})["x0"]


def main(cases: Sequence[Workload] = CASES, like: Tensor | None = None, runs: int = 10) -> None:
    """Measure and record, in the type and on the device of `like`."""
    like = torch.empty((), device="cuda", dtype=torch.bfloat16) if like is None else like
    for of in cases:
        dit = random_network(partial(Dit, of.preset.dit(of.task)), like)
        weights = dit_weights(dit.spec, dit.state_dict().__getitem__)
        del dit
        for way, savings in WAYS.items():
            run = step_of(of, weights, savings)
            assert torch.isfinite(run()).all()
            title = f"guided step, {of.name}, torch engine, rows {way}"
            record(title, COMMAND, summary(gpu_seconds(run, runs)))


if __name__ == "__main__":
    if sys.argv[1:] == ["toy"]:
        main([Workload("toy", "text2image", 0), Workload("toy", "video2world", 0)], torch.empty(()))
    else:
        main()
