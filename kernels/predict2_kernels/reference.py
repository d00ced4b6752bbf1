# SPDX-License-Identifier: Apache-2.0
"""Every kernel in plain torch: the truth for tests and the baseline for benchmarks."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SolverStep:
    """Scalars of one solver step, as in `cfg_ab2_step.h`."""

    time: float
    guidance: float
    keep: float
    now: float
    before: float


def cfg_ab2_step(
    latents: Tensor,
    flow_cond: Tensor,
    flow_uncond: Tensor | None,
    previous_x0: Tensor,
    condition: Tensor | None,
    step: SolverStep,
) -> tuple[Tensor, Tensor]:
    """(new latents, x0) for FP32 latents [C, T, P] and network outputs of the same shape."""

    def predict(flow: Tensor) -> Tensor:
        x0 = (1.0 - step.time) * latents - step.time * flow.to(latents.dtype)
        if condition is not None:
            x0 = torch.cat([condition, x0[:, condition.shape[1] :]], dim=1)
        return x0

    x0 = predict(flow_cond)
    if flow_uncond is not None:
        x0 = x0 + step.guidance * (x0 - predict(flow_uncond))
    new = step.keep * latents.double() + step.now * x0.double() + step.before * previous_x0.double()
    return new.to(latents.dtype), x0
