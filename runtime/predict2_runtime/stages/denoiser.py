# SPDX-License-Identifier: Apache-2.0
"""The denoiser stages: one solver step a call, guidance and update included, no state kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from predict2_runtime.engines import Engine, open_engine
from predict2_runtime.sampler import Array, Guidance, guided_x0, update
from predict2_runtime.schedule import Step, solver_steps
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset, Task
from predict2_spec.requests import LIMITS, MAX_DISTILL_STEPS, SOLVERS, Solver, check_guidance
from predict2_spec.video import LatentShape

from . import Arrays


@dataclass(frozen=True)
class Denoiser:
    """A DiT engine and the sampler around it."""

    preset: Preset
    task: Task  # text2image or video2world
    engine: Engine

    @classmethod
    def open(cls, folder: Path, preset: Preset, task: Task) -> "Denoiser":
        """The stage whose engine is installed in `folder`."""
        return cls(preset, task, open_engine(folder, f"{task}_denoiser").graphs["main"])

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """One step, as `predict2_spec.tensors` describes it: `latents` and `x0`, FP32 [16, T, H, W].

        Raises:
            InvalidRequestError: a shape or a number is outside what the network takes.
        """
        latents, previous = inputs["latents"], inputs["previous_x0"]
        condition = inputs.get("condition_latents")
        self._check_shapes(latents, previous, condition)
        _check_numbers(inputs)
        scale = float(inputs["guidance"][0])
        check_guidance("guidance", scale)
        guidance = Guidance(
            self._text(inputs, "prompt_embeds"), self._text(inputs, "negative_prompt_embeds"), scale
        )
        step = _find_step(inputs, self.preset.distilled and self.task == "text2image")
        x0 = guided_x0(self._velocity, latents, step.sigma, guidance, condition)
        return {"latents": update(step, latents, x0, previous), "x0": x0}

    def _velocity(self, latents: Array, time: Array, embeds: Array, mask: Array | None) -> Array:
        inputs = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": embeds}
        if self.preset.dit(self.task).condition_mask:
            inputs["condition_mask"] = np.zeros_like(latents[:, :1]) if mask is None else mask
        return self.engine(inputs)["velocity"]

    def _check_shapes(self, latents: Array, previous: Array, condition: Array | None) -> None:
        self.preset.check(self.task, LatentShape(*latents.shape[1:]).pixels)
        if previous.shape != latents.shape:
            raise InvalidRequestError(
                f"previous_x0 {previous.shape} must have the shape of latents {latents.shape}"
            )
        if condition is not None and (
            condition.shape[2:] != latents.shape[2:]
            or not 0 < condition.shape[1] <= latents.shape[1]
        ):
            raise InvalidRequestError(
                f"condition_latents {condition.shape} must be the first frames of latents {latents.shape}"
            )

    def _text(self, inputs: Arrays, name: str) -> Array | None:
        embeds = inputs.get(name)
        expected = self.preset.text_encoder.num_tokens, self.preset.dit(self.task).text_width
        if embeds is not None and embeds.shape != expected:
            raise InvalidRequestError(
                f"{name} {embeds.shape} must be {expected}, as text_encoder makes it"
            )
        return embeds


def _check_numbers(inputs: Arrays) -> None:
    for name, array in inputs.items():
        if name not in ("solver", "guidance") and not np.isfinite(array).all():
            raise InvalidRequestError(
                f"{name} holds NaN or infinite values; nothing can come of it"
            )


def _find_step(inputs: Arrays, distilled: bool) -> Step:
    index, num_steps = int(inputs["step"][0]), int(inputs["num_steps"][0])
    solvers: tuple[Solver, ...] = ("distilled",) if distilled else SOLVERS
    most = MAX_DISTILL_STEPS if distilled else LIMITS.num_steps
    solver = str(inputs["solver"][0]) if "solver" in inputs else solvers[0]
    if solver not in solvers:
        raise InvalidRequestError(
            f"solver {solver!r:.40} is none of this network's; choose one of {', '.join(solvers)}"
        )
    if not 1 <= num_steps <= most:
        raise InvalidRequestError(f"num_steps {num_steps} must be between 1 and {most}")
    steps = solver_steps(num_steps, solver)
    if not 0 <= index < len(steps):
        raise InvalidRequestError(f"step {index} must be between 0 and {len(steps) - 1}")
    return steps[index]
