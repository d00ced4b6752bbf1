# SPDX-License-Identifier: Apache-2.0
"""How much of /dev/shm a server's models may come to hold: what a memory-backed volume must have."""

import math
from collections.abc import Mapping

from predict2_spec import tensors
from predict2_spec.limits import LIMITS
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.presets import Preset
from predict2_spec.video import VideoShape

from .costs import FP32_BYTES

MIB = 2**20
# Triton's Python backend gives each process a region, which grows by as much and never shrinks.
_REGION = MIB
_CALLERS = (*tensors.TASK_MODELS, tensors.GENERATE, tensors.BEST_OF_N)
# Those that are handed uploaded files.
_UPLOADS = (
    tensors.MODELS["video2world"],
    tensors.GENERATE,
    tensors.BEST_OF_N,
    tensors.PROMPT_REFINER,
    tensors.CRITIC,
)
# They look at whole clips at most.
_WATCHERS = (tensors.PROMPT_REFINER, tensors.CRITIC, tensors.REASONER)


def shared_memory_bytes(
    preset: Preset, instances: Mapping[str, int], upload_bytes: int = LIMITS.media_bytes
) -> int:
    """The sum of all regions once every process has had its largest call: tensors in and out together.

    A model that calls another holds that call's tensors as well as the called one does. Its own largest is the frame
    guard's, frames in and frames out, and the frames that it may return.

    Args:
        preset: what is served, at its largest size.
        instances: processes of each model by name; models that aren't there have none.
        upload_bytes: the largest file that is uploaded. A larger one is refused, but has come that far.
    """
    frames, latents = _largest(preset)
    sizes = dict.fromkeys((*instances, *(m.name for m in _UPLOADS)), 0)
    sizes |= {model.name: 3 * frames for model in _CALLERS}
    sizes |= {model.name: frames for model in _WATCHERS}
    for model in _UPLOADS:
        sizes[model.name] += upload_bytes
    sizes[tensors.GUARDRAIL_VIDEO.name] = 2 * frames
    sizes[tensors.VAE_DECODER.name] = sizes[tensors.VAE_ENCODER.name] = frames + latents
    text = FP32_BYTES * preset.text_encoder.num_tokens * preset.text_encoder.width
    sizes[tensors.TEXT_ENCODER.name] = 2 * text
    for denoiser in (tensors.TEXT2IMAGE_DENOISER, tensors.VIDEO2WORLD_DENOISER):
        sizes[denoiser.name] = (
            5 * latents + 2 * text
        )  # state, last prediction, both out, what is given
    return sum(count * _region(sizes[name]) for name, count in instances.items())


def _region(size: int) -> int:
    return _REGION * (1 + math.ceil(size / _REGION))


def _largest(preset: Preset) -> tuple[int, int]:
    """Bytes of the most frames a request makes, and of their latents."""
    shapes = [
        VideoShape(preset.max_frames(task), height, width)
        for task in preset.tasks
        for width, height in (preset.image_sizes if task == "text2image" else preset.video_sizes).values()
    ]  # fmt: skip
    frames = max(3 * shape.frames * shape.height * shape.width for shape in shapes)
    latents = max(
        FP32_BYTES * LATENT_CHANNELS * math.prod((z.frames, z.height, z.width))
        for z in (shape.latent for shape in shapes)
    )
    return frames, latents
