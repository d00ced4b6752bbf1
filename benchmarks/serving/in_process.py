# SPDX-License-Identifier: Apache-2.0
"""A repository's pipelines and stages called in this process: what a request takes without a server."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from predict2_runtime.pipelines.tasks import open_backend, task_handler
from predict2_runtime.policy import read_policy
from predict2_runtime.progress import Progress
from predict2_runtime.repository import VERSION_FOLDER, read_preset
from predict2_runtime.stages import Arrays
from predict2_runtime.stages.denoiser import Denoiser
from predict2_runtime.stages.guardrail_text import GuardrailText
from predict2_runtime.stages.guardrail_video import GuardrailVideo
from predict2_runtime.stages.text_encoder import TextEncoder
from predict2_runtime.stages.vae import VaeDecoder, VaeEncoder
from predict2_runtime.tensors import from_tensors, to_tensors
from predict2_spec import tensors
from predict2_spec.presets import Preset, Task

Stage = Callable[[Arrays], Mapping[str, Any]]


class _Tensor:
    """Stands where Triton's tensors do: the arrays stay where they are."""

    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


_PB_UTILS = SimpleNamespace(Tensor=_Tensor)


def _received(contract: tuple[tensors.Tensor, ...], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What arrives when these are sent: the contract's names and dtypes."""
    return from_tensors(contract, to_tensors(_PB_UTILS, contract, arrays))


def open_stages(repository: Path, preset: Preset) -> dict[str, Stage]:
    """Every stage that pipelines without a language model call."""

    def folder(model: tensors.Model) -> Path:
        return repository / model.name / VERSION_FOLDER

    image, clip = tensors.TEXT2IMAGE_DENOISER, tensors.VIDEO2WORLD_DENOISER
    found: dict[str, Stage] = {
        tensors.GUARDRAIL_TEXT.name: GuardrailText.open(read_policy(os.environ), preset),
        tensors.TEXT_ENCODER.name: TextEncoder.open(folder(tensors.TEXT_ENCODER), preset),
        tensors.VAE_DECODER.name: VaeDecoder.open(folder(tensors.VAE_DECODER), preset),
        image.name: Denoiser.open(folder(image), preset, "text2image"),
    }
    if preset.video2world:
        found[tensors.VAE_ENCODER.name] = VaeEncoder.open(folder(tensors.VAE_ENCODER), preset)
        found[clip.name] = Denoiser.open(folder(clip), preset, "video2world")
        guard = tensors.GUARDRAIL_VIDEO
        found[guard.name] = GuardrailVideo.open(folder(guard), preset)
    return found


@dataclass
class Direct:
    """The stages behind a pipeline's `call`, and how long they took."""

    stages: Mapping[str, Stage]
    seconds: float = 0.0
    calls: int = 0
    of_stage: dict[str, float] = field(default_factory=dict)

    def __call__(self, model: tensors.Model, **inputs: Any) -> dict[str, Any]:
        received = _received(model.inputs, inputs)
        began = time.perf_counter()
        answer = self.stages[model.name](received)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return _received(model.outputs, answer)


@dataclass(frozen=True)
class InProcess:
    """A preset's tasks as plain functions."""

    direct: Direct
    handlers: Mapping[Task, Callable[[Arrays, Progress], Mapping[str, Any]]]

    @classmethod
    def open(cls, repository: Path) -> "InProcess":
        preset = read_preset(repository)
        direct = Direct(open_stages(repository, preset))
        backend = open_backend(repository, direct)
        return cls(direct, {task: task_handler(task, backend) for task in preset.tasks})

    def __call__(self, task: Task, arrays: Mapping[str, Any]) -> bytes:
        """The encoded media of a request, given as the arrays that a client would send."""
        model = tensors.MODELS[task]
        inputs = _received(model.inputs, arrays)
        outputs = self.handlers[task](inputs, Progress(lambda event: None, lambda: None))
        return bytes(outputs["media"].tobytes())
