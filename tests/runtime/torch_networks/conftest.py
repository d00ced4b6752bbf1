# SPDX-License-Identifier: Apache-2.0
"""Weights for small networks. These tests need no package but torch, as `make gpu` runs them where there is little else."""

import math

import pytest
import torch

_GATES = ("adaln_modulation", "t_embedder")  # of which larger ones would let nothing else through


def _randomize(module, seed=0):
    """Weights that keep activations near 1, gates that are open, norms and biases that no layer may forget."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("bias"):
            weight.data = 0.1 * noise
        elif weight.numel() == len(weight):
            weight.data = 1 + 0.1 * noise
        else:
            gain = 0.3 if any(part in name for part in _GATES) else 1.0
            weight.data = gain * noise / math.sqrt(weight[0].numel())
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def randomize():
    """From a network to the same with random weights, ready to infer."""
    return _randomize
