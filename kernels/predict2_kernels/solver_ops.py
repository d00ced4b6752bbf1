# SPDX-License-Identifier: Apache-2.0
"""The solver's step as a torch operator; importing this registers it.

Beside `torch_ops`, whose rules hold here too.
"""

import math

import torch
from torch import Tensor
from torch import library as torch_library

from . import reference
from .torch_ops import _NAMESPACE, _contiguous, _dtype, _launch

_NUMBERS = 5  # time, guidance, keep, now, before


def _sizes(
    latents: Tensor,
    flows: list[Tensor],
    previous_x0: Tensor,
    condition: Tensor | None,
    step: Tensor,
) -> tuple[int, int, int, int]:
    """(channels, frames, numbers of a channel's frame, frames of the condition).

    Raises:
        ValueError: the tensors don't fit each other, or `step` isn't five float64.
    """
    shape = tuple(latents.shape)
    if len(shape) < 3 or any(t.shape != latents.shape for t in (*flows, previous_x0)):
        shapes = ", ".join(str(tuple(t.shape)) for t in (*flows, previous_x0))
        raise ValueError(f"latents {shape} must be [C, T, ...], and as they are flows and previous_x0: {shapes}")  # fmt: skip
    given = 0 if condition is None else condition.shape[1]
    if condition is not None and (
        tuple(condition.shape) != (shape[0], given, *shape[2:]) or given > shape[1]
    ):
        raise ValueError(f"a condition of {tuple(condition.shape)} isn't first frames of {shape}")
    if step.shape != (_NUMBERS,) or step.dtype != torch.float64:
        raise ValueError(
            f"step must be {_NUMBERS} numbers in float64, not {tuple(step.shape)} in {step.dtype}"
        )
    return shape[0], shape[1], math.prod(shape[2:]), given


def _flows(cond: Tensor, uncond: Tensor | None) -> list[Tensor]:
    return [cond] if uncond is None else [cond, uncond]


@torch_library.custom_op(f"{_NAMESPACE}::cfg_ab2_step", mutates_args=())
def cfg_ab2_step(
    latents: Tensor,
    flow_cond: Tensor,
    flow_uncond: Tensor | None,
    previous_x0: Tensor,
    condition: Tensor | None,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `reference.cfg_ab2_step`; on CUDA the flows are float32 or bfloat16, and all else but `step` float32."""
    _sizes(latents, _flows(flow_cond, flow_uncond), previous_x0, condition, step)
    return reference.cfg_ab2_step(latents, flow_cond, flow_uncond, previous_x0, condition, step)


@cfg_ab2_step.register_kernel("cuda")
def _(
    latents: Tensor,
    flow_cond: Tensor,
    flow_uncond: Tensor | None,
    previous_x0: Tensor,
    condition: Tensor | None,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    flows = _flows(flow_cond, flow_uncond)
    sizes = _sizes(latents, flows, previous_x0, condition, step)
    state = [t for t in (latents, previous_x0, condition) if t is not None]
    if any(t.dtype != torch.float32 for t in state):
        dtypes = ", ".join(str(t.dtype) for t in state)
        raise ValueError(f"latents, previous_x0 and condition must be float32, not {dtypes}")
    _contiguous(*state, step)
    dtype = _dtype(*flows)
    out, x0 = torch.empty_like(latents), torch.empty_like(latents)
    arrays = (latents, flow_cond, flow_uncond, previous_x0, condition, step, out, x0)
    pointers = [None if t is None else t.data_ptr() for t in arrays]
    _launch("predict2_cfg_ab2_step", (*state, *flows, step), dtype, *pointers, *sizes)
    return out, x0


@cfg_ab2_step.register_fake
def _(
    latents: Tensor,
    flow_cond: Tensor,
    flow_uncond: Tensor | None,
    previous_x0: Tensor,
    condition: Tensor | None,
    step: Tensor,
) -> tuple[Tensor, Tensor]:
    _sizes(latents, _flows(flow_cond, flow_uncond), previous_x0, condition, step)
    return torch.empty_like(latents), torch.empty_like(latents)
