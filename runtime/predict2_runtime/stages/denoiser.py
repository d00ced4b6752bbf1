# SPDX-License-Identifier: Apache-2.0
"""The denoiser stages: one solver step a call, guidance and update included, no state kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from predict2_runtime.engines import NUMPY, Engine, Placement, open_engine
from predict2_runtime.sampler import Array, Guidance, guided_x0, update
from predict2_runtime.schedule import Step, solver_steps
from predict2_spec.errors import InvalidRequestError
from predict2_spec.limits import LIMITS, Limits
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.presets import Preset, Task
from predict2_spec.requests import (
    MAX_DISTILL_STEPS,
    SOLVERS,
    Solver,
    check_guidance,
    check_steps,
)
from predict2_spec.video import LatentShape, VideoShape

from . import Arrays, check_made
from .warming import warming_shapes

_TENSORS = (
    "latents",
    "previous_x0",
    "prompt_embeds",
    "negative_prompt_embeds",
    "condition_latents",
)


@dataclass(frozen=True)
class Denoiser:
    """A DiT engine and the sampler around it."""

    preset: Preset
    task: Task  # text2image or video2world
    engine: Engine
    placement: Placement = NUMPY  # the engine's
    warming: tuple[VideoShape, ...] = ()
    step: Engine | None = None  # of a whole step, where the engine makes it
    limits: Limits = LIMITS

    @classmethod
    def open(cls, folder: Path, preset: Preset, task: Task, limits: Limits = LIMITS) -> "Denoiser":
        """The stage whose engine is installed in `folder`."""
        opened = open_engine(folder, f"{task}_denoiser")
        shapes = warming_shapes(opened.manifest, preset, task)
        graphs = opened.graphs
        return cls(
            preset, task, graphs["main"], opened.placement, shapes, graphs.get("step"), limits
        )

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """One step, as `predict2_spec.tensors` describes it: `latents` and `x0`, FP32 [16, T, H, W].

        Raises:
            InvalidRequestError: a shape or a number is outside what the network takes.
            ServerError: the engine made NaN or infinite values.
        """
        self._check_shapes(
            inputs["latents"], inputs["previous_x0"], inputs.get("condition_latents")
        )
        _check_numbers(inputs)
        scale = float(inputs["guidance"][0])
        check_guidance("guidance", scale, self.limits)
        distilled = self.preset.distilled and self.task == "text2image"
        step = _find_step(inputs, distilled, self.limits)
        self._check_text(inputs)
        # where the engine is they stay for the whole step
        placed = {
            name: self.placement.to_engine(inputs[name]) for name in _TENSORS if name in inputs
        }
        if self.step is None:
            result = self._around_engine(step, scale, placed)
        else:
            result = self.step({**placed, **step.numbers(scale)})
        made = {name: self.placement.to_numpy(array) for name, array in result.items()}
        for array in made.values():
            check_made(f"{self.task}_denoiser", array)
        return made

    def _around_engine(self, step: Step, scale: float, placed: Arrays) -> dict[str, Any]:
        latents, previous = placed["latents"], placed["previous_x0"]
        embeds = placed["prompt_embeds"], placed.get("negative_prompt_embeds")
        condition = placed.get("condition_latents")
        x0 = guided_x0(self._velocity, latents, step.sigma, Guidance(*embeds, scale), condition)
        return {"latents": update(step, latents, x0, previous), "x0": x0}

    def warm_up(self) -> None:
        """A step at each shape, guided as requests are that leave everything at its default."""
        for shape in self.warming:
            self(_warming_inputs(self.preset, self.task, shape.latent))

    def _velocity(self, latents: Array, time: Array, embeds: Array, mask: Array | None) -> Array:
        inputs = {"hidden_states": latents, "timestep": time, "encoder_hidden_states": embeds}
        xp = array_namespace(latents)
        if self.preset.dit(self.task).condition_mask:
            inputs["condition_mask"] = xp.zeros_like(latents[:, :1]) if mask is None else mask
        # the sampler's arithmetic is float32, whatever the network's is
        return xp.astype(self.engine(inputs)["velocity"], xp.float32, copy=False)

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

    def _check_text(self, inputs: Arrays) -> None:
        expected = self.preset.text_encoder.num_tokens, self.preset.dit(self.task).text_width
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            if name in inputs and inputs[name].shape != expected:
                raise InvalidRequestError(
                    f"{name} {inputs[name].shape} must be {expected}, as text_encoder makes it"
                )


def _warming_inputs(preset: Preset, task: Task, shape: LatentShape) -> dict[str, Any]:
    """Pictures have no negative prompt by default, which is sent as zeros; clips have one."""
    distilled, picture = preset.distilled and task == "text2image", task == "text2image"
    latents = np.ones((LATENT_CHANNELS, shape.frames, shape.height, shape.width), np.float32)
    embeds = np.ones((preset.text_encoder.num_tokens, preset.dit(task).text_width), np.float32)
    inputs = {
        "latents": latents,
        "previous_x0": np.zeros_like(latents),
        "step": np.array([0]),
        "num_steps": np.array([1]),
        "guidance": np.array([0.0 if distilled else 1.0]),
        "prompt_embeds": embeds,
    }
    if not distilled:
        inputs["negative_prompt_embeds"] = (0.0 if picture else 0.5) * embeds
    if not picture:
        inputs["condition_latents"] = latents[:, :1]
    return inputs


def _check_numbers(inputs: Arrays) -> None:
    for name, array in inputs.items():
        if name not in ("solver", "guidance") and not np.isfinite(array).all():
            raise InvalidRequestError(
                f"{name} holds NaN or infinite values; nothing can come of it"
            )


def _find_step(inputs: Arrays, distilled: bool, limits: Limits) -> Step:
    index, num_steps = int(inputs["step"][0]), int(inputs["num_steps"][0])
    solvers: tuple[Solver, ...] = ("distilled",) if distilled else SOLVERS
    if distilled and num_steps > MAX_DISTILL_STEPS:
        raise InvalidRequestError(
            f"num_steps {num_steps} must be between 1 and {MAX_DISTILL_STEPS}"
        )
    check_steps(num_steps, limits)
    solver = str(inputs["solver"][0]) if "solver" in inputs else solvers[0]
    if solver not in solvers:
        raise InvalidRequestError(
            f"solver {solver!r:.40} is none of this network's; choose one of {', '.join(solvers)}"
        )
    steps = solver_steps(num_steps, solver)
    if not 0 <= index < len(steps):
        raise InvalidRequestError(f"step {index} must be between 0 and {len(steps) - 1}")
    return steps[index]
