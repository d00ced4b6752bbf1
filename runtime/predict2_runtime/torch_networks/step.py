# SPDX-License-Identifier: Apache-2.0
"""A whole solver step as an engine: what `sampler.guided_x0` and `update` make around the denoiser, as one function.

Recorded, a step is one launch: its numbers are read from the GPU's memory, and all else depends on shapes and on where
the prompts are zero. Rows with and without the prompt begin with the same latents and times, so nothing is compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from predict2_runtime.sampler import replace_first_frames
from predict2_runtime.schedule import CONDITION_SIGMA, flow_time
from predict2_spec.errors import InvalidRequestError

from .denoiser import check_shapes, grid_of
from .dit import Modulations, Prepared, Text
from .kept import Kept
from .recording import Recordings
from .rotary import Rotation

NUMBERS = ("time", "guidance", "keep", "now", "before")  # as the kernel reads them
_TENSORS = ("latents", "previous_x0", "prompt_embeds")
_OPTIONAL = ("negative_prompt_embeds", "condition_latents")


@dataclass(frozen=True)
class Facts:
    """What a recording is made for beside its shapes."""

    batch: int  # 2 with a negative prompt, else 1
    conditioned: bool
    rotation: Rotation
    index: Tensor  # [batch * T], of every frame's time among the step's
    text_rows: slice


class TorchStep:
    """An Engine of one solver step: a state, prompts and the step's numbers -> `latents`, `x0`.

    Args:
        kept: the denoiser's weights, and what is kept of them.
        recorded: CUDA graphs to keep, one for a shape each; 0 launches every kernel by itself.
    """

    inputs = (*_TENSORS, *_OPTIONAL, *NUMBERS)

    def __init__(self, kept: Kept, recorded: int = 0) -> None:
        self._kept = kept
        self._recordings = Recordings(recorded)

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """One step; tensors of other types are cast.

        Args:
            inputs: `latents` and `previous_x0` [16, T, H, W], `prompt_embeds` [M, text width]; if guided,
                `negative_prompt_embeds` like it; for clips that go on from frames, `condition_latents` [16, K, H, W]
                clean; and `schedule.Step.numbers`.

        Returns:
            `latents` and `x0`, float32 [16, T, H, W].

        Raises:
            InvalidRequestError: a name or a shape is none of these, or larger than the network takes.
        """
        kept = self._kept
        self._check(inputs)
        numbers = [float(inputs[name]) for name in NUMBERS]
        latents, previous, *condition = (
            inputs[name].to(kept.device, torch.float32).contiguous()
            for name in ("latents", "previous_x0", "condition_latents")
            if name in inputs
        )
        embeds = [inputs[n] for n in ("prompt_embeds", "negative_prompt_embeds") if n in inputs]
        stacked = torch.stack([text.to(kept.device, kept.dtype) for text in embeds])
        text, _ = kept.read(stacked, torch.empty(0, dtype=torch.float64, device=kept.device))
        given = condition[0].shape[1] if condition else 0
        times = [flow_time(CONDITION_SIGMA)] * bool(condition) + [numbers[0]]
        rows = kept.modulations(self._rounded(times))
        index = ([0] * given + [len(times) - 1] * (latents.shape[1] - given)) * len(embeds)
        facts = Facts(
            len(embeds),
            bool(condition),
            kept.rotation(grid_of(latents.shape)),
            torch.tensor(index, device=kept.device),
            text.rows,
        )
        new, x0 = self._recordings(
            partial(_step, kept, facts),
            (
                torch.tensor(numbers, dtype=torch.float64, device=kept.device),
                *(rows.sublayers, rows.final, latents, previous, *condition),
            ),
            (text.keys, text.values),
            (facts.batch, facts.conditioned, text.rows.start, text.rows.stop),
        )
        return {"latents": new, "x0": x0}

    def _rounded(self, times: list[float]) -> tuple[float, ...]:
        """Times as the network is told them: in float32, as the state, and then in its own type."""
        return tuple(torch.tensor(times, dtype=torch.float32).to(self._kept.dtype).tolist())

    def _check(self, inputs: Mapping[str, Any]) -> None:
        needed = {*_TENSORS, *NUMBERS}
        if not needed <= inputs.keys() <= needed | set(_OPTIONAL):
            raise InvalidRequestError(
                f"a solver step takes {sorted(needed)} and may take {list(_OPTIONAL)}, not {sorted(inputs)}"
            )
        shape, text = tuple(inputs["latents"].shape), tuple(inputs["prompt_embeds"].shape)
        spec, frames = self._kept.weights.spec, shape[1] if len(shape) == 4 else 0
        of_one_row = {"hidden_states": (1, *shape), "timestep": (1, frames)}
        check_shapes(spec, {**of_one_row, "encoder_hidden_states": (1, *text)})
        given = inputs["condition_latents"].shape if "condition_latents" in inputs else shape
        conditioned = min(max(given[1], 1), frames) if len(given) == 4 else frames
        expected = {
            "previous_x0": shape,
            "negative_prompt_embeds": text,
            "condition_latents": (shape[0], conditioned, *shape[2:]),
        }
        for name, wanted in expected.items():
            found = tuple(inputs[name].shape) if name in inputs else wanted
            if found != wanted:
                raise InvalidRequestError(
                    f"{name} is {list(found)} and must be {list(wanted)} with latents of {list(shape)}"
                )


def _step(kept: Kept, facts: Facts, numbers: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The step of tensors, as recordings take them."""
    sublayers, final, latents, previous, *optional, keys, values = tensors
    condition = optional[0] if facts.conditioned else None
    clean = (1 - numbers[0]).to(latents.dtype) * latents
    x = replace_first_frames(clean, condition).to(kept.dtype)[None]
    mask = None
    if kept.weights.spec.condition_mask:
        mask = torch.zeros_like(x[:, :1])
        if condition is not None:
            mask[:, :, : condition.shape[1]] = 1
        mask = mask.expand(facts.batch, *mask.shape[1:])
    velocity = kept.evaluate(
        Prepared(
            x.expand(facts.batch, *x.shape[1:]),
            mask,
            Modulations(sublayers, final).at(facts.index),
            Text(facts.text_rows, keys, values),
            facts.rotation,
            facts.batch > 1 and kept.savings.shared_start,
        )
    ).contiguous()
    cond, uncond = velocity[0], velocity[1] if facts.batch > 1 else None
    if kernels := _kernels(cond):
        new, x0 = kernels.cfg_ab2_step(latents, cond, uncond, previous, condition, numbers)
        return new, x0
    from predict2_kernels.reference import cfg_ab2_step

    return cfg_ab2_step(latents, cond, uncond, previous, condition, numbers)


def _kernels(x: Tensor) -> Any:
    """The operator over our kernel if it can compute on x, else None."""
    if not x.is_cuda or x.dtype not in (torch.float32, torch.bfloat16):
        return None
    from predict2_kernels import library

    if library() is None:
        return None
    from predict2_kernels import solver_ops  # registers it

    return solver_ops
