# SPDX-License-Identifier: Apache-2.0
"""The headline workloads' steps on the toy, on the CPU, against the network and formulas they are made of."""

import pytest
import torch

from benchmarks.engines.bench_workloads import (
    WORKLOADS,
    decode,
    our_decoder,
    our_velocity,
    plain,
    solver_step,
)
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


@pytest.mark.parametrize("task", ["text2image", "video2world"])
@torch.no_grad()
def test_the_engines_take_the_same_step(task):
    latent = VideoShape(TOY.max_frames(task), 32, 48).latent
    dit = Dit(TOY.dit(task)).eval()
    steps = []
    for velocity in (plain(dit), our_velocity(dit)):
        torch.manual_seed(0)
        steps.append(solver_step(velocity, TOY, task, latent, "cpu")()[1])
    # float32, sums in another order; guidance makes the difference of two answers 8 times as large
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fp8_takes_a_step_nearby():
    latent = VideoShape(1, 32, 48).latent
    dit = Dit(TOY.dit("text2image")).eval()
    steps = []
    for velocity in (plain(dit), our_velocity(dit, fp8=True)):
        torch.manual_seed(0)
        steps.append(solver_step(velocity, TOY, "text2image", latent, "cpu")()[1].flatten())
    cosine = torch.nn.functional.cosine_similarity(*steps, dim=0)
    assert 0.95 < cosine < 0.999999  # guidance makes the difference 8 times as large


@torch.no_grad()
def test_the_decoders_make_every_frame_alike():
    latent = VideoShape(13, 32, 48).latent
    vae, frames = Vae(TOY.vae).eval(), []
    for chunk_decoder in (vae.decode_chunk, our_decoder(vae, TOY.vae)):
        torch.manual_seed(0)
        frames.append(decode(chunk_decoder, latent, vae.conv2.weight))
    assert frames[0].shape == (1, 3, 4, 32, 48)
    torch.testing.assert_close(*frames, rtol=1e-4, atol=1e-4)


def test_workloads_are_what_their_presets_serve():
    for of in WORKLOADS:
        preset = find_preset(of.preset)
        latent = of.latent(preset)
        preset.check(of.task, latent.pixels)
        assert of.published_s > 0
    assert len({of.name for of in WORKLOADS}) == len(WORKLOADS)
