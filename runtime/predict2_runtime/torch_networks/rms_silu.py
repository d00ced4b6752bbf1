# SPDX-License-Identifier: Apache-2.0
"""The VAE's norm over the channels of a pixel: our kernel on a GPU where it was built and fits, plain torch elsewhere.

Plain torch rounds where the reference module does, after every operation; the kernel once, at the end.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_VECTOR = 16  # bytes that the kernel loads at once, so that channels must be whole ones
_MAX_CHANNELS = 1024  # of the kernel


def rms_norm(x: Tensor, gamma: Tensor) -> Tensor:
    """x / max(|x|, 1e-12) * sqrt(C) * gamma, where |x| is over the channels of x [B, C, ...]; gamma [C]."""
    if kernels := _kernels(x):
        normed: Tensor = kernels.rms_silu(_channels_last(x), gamma, False)
        return normed
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = wide.square().sum(dim=1, keepdim=True).sqrt().to(x.dtype)
    scale: float = len(gamma) ** 0.5
    return x / norm.clamp_min(1e-12) * scale * gamma.view(-1, *[1] * (x.ndim - 2))


def norm_silu_into(x: Tensor, gamma: Tensor, out: Tensor) -> None:
    """The SiLU of that, written to `out`, which is like x or the later frames of a longer clip."""
    if kernels := _kernels(x):
        kernels.rms_silu_into(_channels_last(x), gamma, out)
    else:
        out.copy_(F.silu(rms_norm(x, gamma)))


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, ...] as the kernel reads it; most convolutions leave it so, and then nothing is moved."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _kernels(x: Tensor) -> Any:
    """The operators over our kernel if it can compute on x, else None."""
    channels = x.shape[1]
    fits = channels * x.element_size() % _VECTOR == 0 and channels <= _MAX_CHANNELS
    if not (x.is_cuda and fits and x.dtype in (torch.float32, torch.bfloat16)):
        return None
    from predict2_kernels import library

    if not hasattr(library(), "predict2_rms_silu"):  # an older build
        return None
    from predict2_kernels import vae_ops  # registers them

    return vae_ops
