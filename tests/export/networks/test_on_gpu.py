# SPDX-License-Identifier: Apache-2.0
"""The networks in bf16 on a GPU against themselves in float32 on the CPU. Needs no package but torch and pytest."""

from dataclasses import replace

import pytest
import torch

from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_spec.networks import DIT_2B_VIDEO2WORLD, DIT_TOY_VIDEO2WORLD, TOY_VAE

pytestmark = pytest.mark.gpu


def randomize(network):
    network.load_state_dict({k: v.load() for k, v in synthetic_weights(network).items()})


def relative_error(actual, expected):
    difference = actual.float().cpu() - expected
    return (difference.norm() / expected.norm()).item()


@pytest.mark.parametrize("spec", [DIT_TOY_VIDEO2WORLD, replace(DIT_2B_VIDEO2WORLD, num_blocks=2)])
@torch.no_grad()
def test_dit_in_bf16_on_the_gpu_agrees_with_float32_on_the_cpu(spec):
    dit = Dit(spec).eval()
    randomize(dit)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 3, 8, 12, generator=generator)
    time = torch.rand(2, 3, generator=generator)
    text = torch.randn(2, 9, spec.text_width, generator=generator)
    mask = torch.zeros(2, 1, 3, 8, 12)
    mask[:, :, :1] = 1
    # the same rounded inputs and weights on both sides
    inputs = [t.bfloat16() for t in (x, time, text, mask)]
    rounded = dit.bfloat16()
    on_gpu = rounded.cuda()(*(t.cuda() for t in inputs))
    expected = rounded.cpu().float()(*(t.float() for t in inputs))
    # bf16 keeps 8 bits: 0.4 % a rounding, partly averaged out over the layers
    assert relative_error(on_gpu, expected) < 0.03


@torch.no_grad()
def test_vae_in_bf16_on_the_gpu_agrees_with_float32_on_the_cpu():
    vae = Vae(TOY_VAE).eval()
    randomize(vae)
    frames = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = vae.encode(frames)
    clip = vae.decode(latents)
    vae = vae.bfloat16().cuda()
    assert relative_error(vae.encode(frames.bfloat16().cuda()), latents) < 0.05
    assert relative_error(vae.decode(latents.bfloat16().cuda()), clip) < 0.05
