# SPDX-License-Identifier: Apache-2.0
"""A generation's parts on the toy, on the CPU, against the network and formulas they are made of."""

from functools import partial

import pytest
import torch

from benchmarks.engines.generation import (
    by_velocity,
    decode,
    encode,
    our_step,
    our_vae,
    plain,
    plain_vae,
    text_encoder,
)
from benchmarks.engines.random_networks import random_network, text_encoder_reader
from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_runtime.sampler import Guidance
from predict2_runtime.schedule import solver_steps
from predict2_spec.networks import T5_11B, TOY_TEXT_ENCODER
from predict2_spec.presets import TOY

torch.set_num_threads(1)
LIKE = torch.empty(())
SHAPE = (16, 4, 4, 6)


def stepped(step, task):
    """x0 of one step from random numbers that are the same at each call."""
    torch.manual_seed(0)
    spec = TOY.dit(task)
    size = SHAPE if spec.condition_mask else (16, 1, *SHAPE[2:])
    latents, before = torch.randn(2, *size)
    text = torch.randn(2, TOY.text_encoder.num_tokens, spec.text_width)
    condition = torch.randn(16, 1, *SHAPE[2:]) if spec.condition_mask else None
    entry = solver_steps(35)[7]
    return step(entry, latents, before, Guidance(text[0], text[1], 7.0), condition)


@pytest.mark.parametrize("task", ["text2image", "video2world"])
@torch.no_grad()
def test_a_step_guides_and_updates(task):
    calls = []

    def velocity(latents, time, embeds, mask):
        calls.append((latents.shape, time.shape, embeds.shape, mask is None))
        return torch.zeros_like(latents)

    new, x0 = stepped(by_velocity(velocity), task)
    frames = x0.shape[1]
    shape = (2, 16, frames, *SHAPE[2:])
    text = (2, TOY.text_encoder.num_tokens, TOY.dit(task).text_width)
    assert calls == [(shape, (2, frames), text, task == "text2image")]
    assert torch.isfinite(new).all()
    assert not torch.equal(new, x0)


@pytest.mark.parametrize("task", ["text2image", "video2world"])
@torch.no_grad()
def test_the_engines_take_the_same_step(task):
    dit = random_network(partial(Dit, TOY.dit(task)), LIKE)
    expected = stepped(plain(dit), task)
    # float32, sums in another order; guidance makes the difference of two answers 8 times as large
    torch.testing.assert_close(stepped(our_step(dit), task), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fp8_takes_a_step_nearby():
    dit = random_network(partial(Dit, TOY.dit("text2image")), LIKE)
    pair = [stepped(make(dit), "text2image")[1].flatten() for make in (plain, partial(our_step, fp8=True))]  # fmt: skip
    cosine = torch.nn.functional.cosine_similarity(*pair, dim=0)
    assert 0.95 < cosine < 0.999999  # guidance makes the difference 8 times as large


@torch.no_grad()
def test_both_vaes_stream_clips_alike():
    vae = random_network(partial(Vae, TOY.vae), LIKE)
    frames = torch.rand(1, 3, 9, 32, 48) * 2 - 1
    halves = plain_vae(vae), our_vae(vae, TOY.vae)
    latents = [encode(half, frames) for half in halves]
    assert latents[0].shape == (16, 3, 4, 6)
    torch.testing.assert_close(latents[0], vae.encode(frames)[0])
    torch.testing.assert_close(*latents, rtol=1e-4, atol=1e-4)
    made = [torch.cat(decode(half, latents[0], LIKE.dtype), dim=2) for half in halves]
    torch.testing.assert_close(made[0], vae.decode(latents[0][None]))
    torch.testing.assert_close(*made, rtol=1e-4, atol=1e-4)


def test_random_weights_are_of_unit_gain_in_the_type_that_was_asked_for():
    torch.manual_seed(0)
    like = torch.empty((), dtype=torch.bfloat16)
    dit = random_network(partial(Dit, TOY.dit("text2image")), like)
    weights = dict(dit.named_parameters())
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    matrix = weights["blocks.0.mlp.layer1.weight"].float()
    assert matrix.std() == pytest.approx(matrix.shape[1] ** -0.5, rel=0.05)
    assert (weights["blocks.0.self_attn.q_norm.weight"] == 1).all()
    assert dit.pos_embedder.rows.dtype == torch.float32  # a cast must not round the tables


@pytest.mark.parametrize("spec", [TOY_TEXT_ENCODER, T5_11B], ids=["toy", "T5-11B"])
def test_the_text_encoder_has_weights_of_the_right_shapes(spec):
    with torch.device("meta"):
        expected = dict(TextEncoder(spec).named_parameters())
    read = text_encoder_reader(spec, torch.empty((), device="meta"))
    for name, parameter in expected.items():
        assert read(name).shape == parameter.shape, name


def test_two_prompts_are_encoded():
    embeds = text_encoder(TOY_TEXT_ENCODER, LIKE)()
    assert embeds.shape == (2, TOY_TEXT_ENCODER.num_tokens, TOY_TEXT_ENCODER.width)
    assert torch.isfinite(embeds).all()
    assert not torch.equal(*embeds)
