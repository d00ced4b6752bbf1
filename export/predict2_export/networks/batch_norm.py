# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation whose statistics are weights like others, so that they are read, lowered and checked as such."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
MOMENTUM = 0.1  # of the running statistics, while training


class BatchNorm(nn.Module):
    """y[:, c] = (x[:, c] - running_mean[c]) / sqrt(running_var[c] + EPS) * weight[c] + bias[c].

    While training the batch's own statistics take the place of the running ones, which follow them.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.running_var = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, width] or [B, width, H, W]."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            MOMENTUM,
            EPS,
        )
