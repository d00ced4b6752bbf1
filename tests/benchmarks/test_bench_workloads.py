# SPDX-License-Identifier: Apache-2.0
"""The headline workloads' steps on the toy, on the CPU, against the network and formulas they are made of."""

import pytest
import torch

from benchmarks.engines.bench_workloads import WORKLOADS, decode, plain, solver_step
from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_spec.presets import TOY, find_preset
from predict2_spec.video import VideoShape


@pytest.mark.parametrize("task", ["text2image", "video2world"])
@torch.no_grad()
def test_a_step_guides_and_updates(task):
    torch.manual_seed(0)
    latent = VideoShape(TOY.max_frames(task), 32, 48).latent
    dit = Dit(TOY.dit(task)).eval()
    calls = []

    def counted(latents, time, embeds, mask):
        calls.append((latents.shape, time.shape, embeds.shape, mask is None))
        return plain(dit)(latents, time, embeds, mask)

    new, x0 = solver_step(counted, TOY, task, latent, "cpu")()
    shape = (16, latent.frames, latent.height, latent.width)
    assert new.shape == x0.shape == shape
    assert torch.isfinite(new).all()
    assert not torch.equal(new, x0)
    text = (2, TOY.text_encoder.num_tokens, TOY.dit(task).text_width)
    assert calls == [((2, *shape), (2, latent.frames), text, task == "text2image")]


@torch.no_grad()
def test_decoding_makes_every_frame():
    latent = VideoShape(13, 32, 48).latent
    frames = decode(Vae(TOY.vae).eval(), latent, "cpu")
    assert frames.shape == (1, 3, 4, 32, 48)


def test_workloads_are_what_their_presets_serve():
    for of in WORKLOADS:
        preset = find_preset(of.preset)
        latent = of.latent(preset)
        preset.check(of.task, latent.pixels)
        assert of.published_s > 0
    assert len({of.name for of in WORKLOADS}) == len(WORKLOADS)
