# SPDX-License-Identifier: Apache-2.0
"""Making pictures and clips: text encoding, the solver loop and decoding, each a call to a stage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from predict2_runtime.bls import Call
from predict2_runtime.frames import Frames
from predict2_runtime.policy import Policy
from predict2_runtime.progress import Progress
from predict2_runtime.sampler import initial_noise, normal_noise
from predict2_runtime.schedule import solver_steps
from predict2_spec import tensors
from predict2_spec.guardrails import Verdict
from predict2_spec.presets import Preset
from predict2_spec.requests import Solver
from predict2_spec.tensors import Model
from predict2_spec.video import VideoShape


@dataclass(frozen=True)
class Backend:
    """What pipelines run on: the stages behind `call`, and what is known of them."""

    preset: Preset
    precision: Mapping[str, str]  # denoiser -> precision of its engine
    call: Call
    policy: Policy = field(default_factory=Policy)
    count_blocked: Callable[[Verdict], None] = lambda verdict: None
    run_folder: Path | None = None  # where requests in progress are marked


@dataclass(frozen=True)
class Sampling:
    """How one picture or clip is drawn."""

    prompt: str
    negative_prompt: str
    guidance: float
    seed: int
    num_steps: int
    solver: Solver


def make_picture(
    backend: Backend, progress: Progress, sampling: Sampling, shape: VideoShape
) -> Frames:
    """A picture from text, UINT8 [1, H, W, 3].

    Without a negative prompt the unconditional branch sees all zeros in place of a text, as the network did in
    training. A distilled network has learnt what guidance adds, so it is asked once.
    """
    guided = sampling.solver != "distilled"
    embeds = encode_text(backend, sampling.prompt, sampling.negative_prompt if guided else "")
    progress.done("encode_text")
    if guided:
        embeds.setdefault("negative_prompt_embeds", np.zeros_like(embeds["prompt_embeds"]))
    latents = denoise(
        backend, progress, "denoise_image", tensors.TEXT2IMAGE_DENOISER, sampling, shape, embeds
    )
    frames: Frames = backend.call(tensors.VAE_DECODER, latents=latents)["frames"]
    progress.done("decode_image")
    return frames


def make_clip(
    backend: Backend, progress: Progress, sampling: Sampling, shape: VideoShape, first: Frames
) -> Frames:
    """A clip that goes on from `first` (UINT8 [1 or 5, H, W, 3]), UINT8 [F, H, W, 3].

    Only the given frames are encoded: the VAE is causal, so what would follow them can't change their latents.
    Without a negative prompt both branches see the same text and guidance cancels.
    """
    embeds = encode_text(backend, sampling.prompt, sampling.negative_prompt)
    progress.done("encode_text")
    condition = backend.call(tensors.VAE_ENCODER, frames=first)["latents"]
    progress.done("encode_input")
    inputs = {**embeds, "condition_latents": condition}
    latents = denoise(
        backend, progress, "denoise_video", tensors.VIDEO2WORLD_DENOISER, sampling, shape, inputs
    )
    frames: Frames = backend.call(tensors.VAE_DECODER, latents=latents)["frames"]
    progress.done("decode_video")
    return frames


def encode_text(backend: Backend, prompt: str, negative_prompt: str) -> dict[str, Any]:
    """`prompt_embeds`, and `negative_prompt_embeds` unless that prompt is empty; FP32 [tokens, width]."""
    texts = [prompt, negative_prompt] if negative_prompt else [prompt]
    embeds = backend.call(tensors.TEXT_ENCODER, prompt=texts)["prompt_embeds"]
    return dict(zip(("prompt_embeds", "negative_prompt_embeds"), embeds, strict=False))


def denoise(
    backend: Backend,
    progress: Progress,
    stage: str,
    model: Model,
    sampling: Sampling,
    shape: VideoShape,
    conditions: Mapping[str, Any],
) -> Any:
    """From noise to clean latents, FP32 [16, T, H/8, W/8], one call of `model` a solver step."""
    latents = initial_noise(sampling.seed, shape.latent)
    normals = islice(normal_noise(sampling.seed, shape.latent), 1, None)  # the first began it
    previous_x0 = np.zeros_like(latents)
    steps = solver_steps(sampling.num_steps, sampling.solver)
    for index, step in enumerate(steps):
        outputs = backend.call(
            model,
            latents=latents,
            previous_x0=previous_x0,
            step=index,
            num_steps=sampling.num_steps,
            solver=sampling.solver,
            guidance=sampling.guidance,
            **conditions,
        )
        latents, previous_x0 = outputs["latents"], outputs["x0"]
        if step.noise:
            latents = latents + np.float32(step.noise) * next(normals)
        progress.done(stage, index + 1, len(steps))
    return latents
