# SPDX-License-Identifier: Apache-2.0
"""Weights for small networks. These tests need no package but torch, as `make gpu` runs them where there is little else."""

import math
from functools import partial

import pytest
import torch

from predict2_runtime.torch_networks import denoiser, step, text_encoder, vae
from predict2_runtime.torch_networks.recording import Recordings

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


class Captures:
    """Records as a CUDA graph does, on the CPU: a replay reads what lies where the inputs were then."""

    def __init__(self):
        self.made = 0

    def __call__(self, work):
        self.made += 1
        # as poison: nothing is computed before the first replay
        results = tuple(torch.full_like(result, torch.nan) for result in work())

        def replay():
            for place, value in zip(results, work(), strict=True):
                place.copy_(value)

        return results, replay


@pytest.fixture
def captures(monkeypatch):
    """What takes the place of CUDA graphs in every engine that is made from now on, and counts what it recorded."""
    found = Captures()
    for module in (denoiser, step, text_encoder, vae):
        monkeypatch.setattr(module, "Recordings", partial(Recordings, capture=found))
    return found
