# SPDX-License-Identifier: Apache-2.0
"""The public tasks: from a request to encoded media and its metadata."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from predict2_runtime.bls import Call
from predict2_runtime.conditioning import cover_crop
from predict2_runtime.drain import in_progress, run_folder
from predict2_runtime.engines import read_manifest
from predict2_runtime.frames import (
    Frames,
    decode_image,
    decode_last_frames,
    encode_image,
    encode_mp4,
)
from predict2_runtime.policy import read_policy
from predict2_runtime.progress import Progress
from predict2_runtime.repository import VERSION_FOLDER, read_preset
from predict2_runtime.stages import Arrays
from predict2_runtime.tensors import parse_request
from predict2_spec import tensors
from predict2_spec.errors import InvalidRequestError
from predict2_spec.guardrails import Verdict
from predict2_spec.presets import TASKS, Task
from predict2_spec.requests import (
    MAX_DISTILL_STEPS,
    Request,
    Text2ImageRequest,
    Text2WorldRequest,
    Video2WorldRequest,
)
from predict2_spec.results import Metadata
from predict2_spec.video import VideoShape

from .generation import Backend, Sampling, make_clip, make_picture
from .moderation import Moderator, Refinement, open_moderator, refine

VERSION = version("cosmos-predict2-triton")
MEDIA_TYPES = {"jpg": "image/jpeg", "png": "image/png"}
Outputs = dict[str, Any]


def open_backend(
    repository: Path, call: Call, count_blocked: Callable[[Verdict], None] | None = None
) -> Backend:
    """What pipelines need to know of the repository they are served from, and of its owner's decisions."""
    preset = read_preset(repository)
    denoisers = [tensors.TEXT2IMAGE_DENOISER]
    if preset.video2world:
        denoisers.append(tensors.VIDEO2WORLD_DENOISER)
    manifests = [read_manifest(repository / m.name / VERSION_FOLDER) for m in denoisers]
    precision = {m.network: m.precision for m in manifests}
    backend = Backend(
        preset,
        precision,
        call,
        read_policy(os.environ),
        run_folder=run_folder(os.environ),
    )
    return replace(backend, count_blocked=count_blocked) if count_blocked else backend


def text2image(backend: Backend, request: Text2ImageRequest, progress: Progress) -> Outputs:
    """A picture from text."""
    shape = request.shape(backend.preset, backend.policy.limits)
    moderator = open_moderator(backend, request, progress)
    moderator.check_text(request.prompt, "prompt")
    sampling = _sampling(request)
    if backend.preset.distilled:
        steps = request.distill_steps or MAX_DISTILL_STEPS
        sampling = replace(sampling, num_steps=steps, solver="distilled", guidance=0.0)
    frames = make_picture(backend, progress, sampling, shape)
    if backend.policy.guard_pictures:
        frames = moderator.check_frames(frames, "picture")
    media = encode_image(frames[0], request.output_format)
    progress.done("write")
    metadata = replace(
        _metadata(moderator, request, shape),
        fps=0,
        num_steps=sampling.num_steps,
        solver=sampling.solver,
        guidance=sampling.guidance,
    )
    return _outputs(request, media, metadata, frames)


@dataclass(frozen=True)
class PreparedClip:
    """A clip that only has to be drawn."""

    moderator: Moderator
    shape: VideoShape
    first: Frames  # what it goes on from, UINT8 [1 or 5, H, W, 3]
    refinement: Refinement

    def beside(self) -> "PreparedClip":
        """The same for another seed, drawn beside it: with a clock and verdicts of its own."""
        own = replace(
            self.moderator,
            progress=self.moderator.progress.beside(),
            verdicts=list(self.moderator.verdicts),
        )
        return replace(self, moderator=own)


def video2world(backend: Backend, request: Video2WorldRequest, progress: Progress) -> Outputs:
    """A clip that goes on from a picture or from the end of a clip."""
    return finish_clip(request, prepare_clip(backend, request, progress))


def prepare_clip(backend: Backend, request: Video2WorldRequest, progress: Progress) -> PreparedClip:
    """Check and refine the prompt, and read the input; all that doesn't depend on the seed."""
    shape = request.shape(backend.preset, backend.policy.limits)
    moderator = open_moderator(backend, request, progress)
    moderator.check_text(request.prompt, "prompt")
    first = _input_frames(backend, request, shape)
    seen = {"video": np.frombuffer(request.video, np.uint8)} if request.video else {"frames": first}
    return PreparedClip(moderator, shape, first, _refine(moderator, request, seen))


def text2world(backend: Backend, request: Text2WorldRequest, progress: Progress) -> Outputs:
    """A clip from text: its first frame is made as a picture, which never leaves the server's memory."""
    shape = request.shape(backend.preset, backend.policy.limits)
    width, height = backend.preset.size("text2image", request.aspect_ratio)
    moderator = open_moderator(backend, request, progress)
    moderator.check_text(request.prompt, "prompt")
    sampling = replace(_sampling(request), guidance=request.image_guidance)
    with progress.more_to_come():
        picture = make_picture(backend, progress, sampling, VideoShape(1, height, width))
    first = cover_crop(picture[0], shape.height, shape.width)[None]
    refinement = _refine(moderator, request, {"frames": first})
    return finish_clip(request, PreparedClip(moderator, shape, first, refinement))


PIPELINES: dict[Task, Callable[[Backend, Any, Progress], Outputs]] = {
    "text2image": text2image,
    "video2world": video2world,
    "text2world": text2world,
}


def task_handler(task: Task, backend: Backend) -> Callable[[Arrays, Progress], Outputs]:
    """The handler of one task's Triton model."""
    return partial(_run, task, backend)


def any_task_handler(backend: Backend) -> Callable[[Arrays, Progress], Outputs]:
    """The handler of `generate`, whose `task` input names the task."""

    def run(arrays: Arrays, progress: Progress) -> Outputs:
        rest = dict(arrays)
        task = rest.pop("task", [""])[0]
        if task not in TASKS:
            raise InvalidRequestError(
                f"task {task!r:.40} is unknown; choose one of {', '.join(TASKS)}"
            )
        return _run(task, backend, rest, progress)

    return run


def _run(task: Task, backend: Backend, arrays: Arrays, progress: Progress) -> Outputs:
    request = parse_request(task, arrays, backend.policy.limits)
    request.expect(backend.preset)
    with in_progress(backend.run_folder):
        return PIPELINES[task](backend, request, progress)


def _sampling(request: Request) -> Sampling:
    return Sampling(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        guidance=request.guidance,
        seed=request.seed,
        num_steps=request.num_steps,
        solver=request.solver,
    )


def _input_frames(backend: Backend, request: Video2WorldRequest, shape: VideoShape) -> Frames:
    limits = backend.policy.limits
    if request.image:
        frames = decode_image(request.image, limits)[None]
    else:
        frames = decode_last_frames(request.video, request.num_conditional_frames, limits)
    return np.stack([cover_crop(frame, shape.height, shape.width) for frame in frames])


def _refine(
    moderator: Moderator, request: Video2WorldRequest | Text2WorldRequest, seen: Mapping[str, Any]
) -> Refinement:
    wanted = not request.disable_prompt_refiner
    return refine(moderator, request.prompt, wanted=wanted, **seen)


def finish_clip(request: Video2WorldRequest | Text2WorldRequest, clip: PreparedClip) -> Outputs:
    """Draw the clip, check it and write it."""
    moderator, shape, refinement = clip.moderator, clip.shape, clip.refinement
    backend, progress = moderator.backend, moderator.progress
    sampling = replace(_sampling(request), prompt=refinement.prompt)
    frames = make_clip(backend, progress, sampling, shape, clip.first)
    frames = moderator.check_frames(frames, "clip")
    media = encode_mp4(frames, backend.preset.fps)
    progress.done("write")
    metadata = replace(
        _metadata(moderator, request, shape),
        refiner=refinement.outcome,
        refined_prompt=refinement.prompt if refinement.outcome == "refined" else "",
    )
    return _outputs(request, media, metadata, frames)


# The denoisers that each task runs; the last of them makes what the caller gets.
_DENOISERS: dict[Task, tuple[tensors.Model, ...]] = {
    "text2image": (tensors.TEXT2IMAGE_DENOISER,),
    "video2world": (tensors.VIDEO2WORLD_DENOISER,),
    "text2world": (tensors.TEXT2IMAGE_DENOISER, tensors.VIDEO2WORLD_DENOISER),
}


def _metadata(moderator: Moderator, request: Request, shape: VideoShape) -> Metadata:
    backend = moderator.backend
    precisions = [backend.precision[denoiser.name] for denoiser in _DENOISERS[request.task]]
    return Metadata(
        task=request.task,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        guidance=request.guidance,
        num_steps=request.num_steps,
        solver=request.solver,
        width=shape.width,
        height=shape.height,
        num_frames=shape.frames,
        fps=backend.preset.fps,
        media_type=MEDIA_TYPES[request.output_format]
        if isinstance(request, Text2ImageRequest)
        else "video/mp4",
        preset=backend.preset.name,
        level="fp8" if "fp8" in precisions else "exact",
        precision=precisions[-1],
        version=VERSION,
        image_guidance=getattr(request, "image_guidance", None),
        num_conditional_frames=getattr(request, "num_conditional_frames", None),
        seconds=moderator.progress.seconds(),
        guardrail="on" if moderator.enabled else "off",
        verdicts=[asdict(verdict) for verdict in moderator.verdicts],
    )


def _outputs(request: Request, media: bytes, metadata: Metadata, frames: Frames) -> Outputs:
    return {
        "media": np.frombuffer(media, dtype=np.uint8),
        "metadata": metadata.to_json(),
        "frames": frames if request.return_frames else None,
    }
