# SPDX-License-Identifier: Apache-2.0
"""Renaming: every published layout becomes the original's names, and nothing is lost on the way."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from predict2_export.checkpoint.names import dit_state_dict, text_encoder_state_dict, vae_state_dict
from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_spec import networks as nets
from predict2_spec.errors import CheckpointError


def assert_equal_states(left, right):
    assert left.keys() == right.keys()
    for key, value in right.items():
        assert left[key].dtype == value.dtype
        assert torch.equal(left[key], value)


def as_saved(state, prefix):
    """A state dict as NVIDIA's training saves it: prefixed, with what isn't weights."""
    left_over = {
        "accum_video_sample_counter": torch.zeros(()),
        "accum_image_sample_counter": torch.zeros(()),
        "accum_iteration": torch.zeros(()),
        "accum_train_in_hours": torch.zeros(()),
        "pos_embedder.seq": torch.arange(4),
        "pos_embedder.dim_spatial_range": torch.zeros(4),
        "pos_embedder.dim_temporal_range": torch.zeros(4),
        "blocks.0.self_attn.q_norm._extra_state": torch.zeros(0),
    }
    return {f"{prefix}{key}": value for key, value in (state | left_over).items()}


def toy_dit(seed=0):
    torch.manual_seed(seed)
    return Dit(nets.DIT_TOY_VIDEO2WORLD)


@pytest.mark.parametrize("prefix", ["net.", ""])
def test_the_originals_names_lose_prefix_and_left_overs(prefix):
    state = toy_dit().state_dict()
    assert_equal_states(dit_state_dict(as_saved(state, prefix)), state)


@pytest.mark.parametrize("ema", [False, True])
def test_trained_and_averaged_weights_are_told_apart(ema):
    trained, averaged = toy_dit(0).state_dict(), toy_dit(1).state_dict()
    state = as_saved(trained, "net.") | as_saved(averaged, "net_ema.")
    assert_equal_states(dit_state_dict(state, ema=ema), averaged if ema else trained)


def test_averaged_weights_that_do_not_exist_are_refused():
    with pytest.raises(CheckpointError, match=r"no averaged weights \(net_ema\.\*\)"):
        dit_state_dict(as_saved(toy_dit().state_dict(), "net."), ema=True)


def diffusers_vae(spec):
    return AutoencoderKLWan(
        base_dim=spec.base_width,
        z_dim=nets.LATENT_CHANNELS,
        dim_mult=list(spec.multipliers),
        num_res_blocks=spec.num_blocks,
        temperal_downsample=list(spec.temporal_down),
    )


@pytest.mark.parametrize("spec", [nets.TOY_VAE, nets.WAN_VAE], ids=["toy", "wan"])
def test_diffusers_vae_gets_the_released_names_and_shapes(spec):
    with torch.device("meta"):
        ours, theirs = Vae(spec).state_dict(), diffusers_vae(spec).state_dict()
    renamed = vae_state_dict(theirs, spec)
    assert {key: value.shape for key, value in renamed.items()} == {
        key: value.shape for key, value in ours.items()
    }
    assert len(renamed) == len(theirs)  # no two names became one


@pytest.mark.parametrize(
    ("released", "diffusers"),
    [  # one of each rule
        ("encoder.conv1.weight", "encoder.conv_in.weight"),
        ("encoder.downsamples.3.residual.0.gamma", "encoder.down_blocks.3.norm1.gamma"),
        ("encoder.downsamples.3.residual.2.weight", "encoder.down_blocks.3.conv1.weight"),
        ("encoder.downsamples.3.residual.3.gamma", "encoder.down_blocks.3.norm2.gamma"),
        ("encoder.downsamples.3.residual.6.bias", "encoder.down_blocks.3.conv2.bias"),
        ("encoder.downsamples.3.shortcut.weight", "encoder.down_blocks.3.conv_shortcut.weight"),
        ("encoder.downsamples.5.resample.1.weight", "encoder.down_blocks.5.resample.1.weight"),
        ("encoder.downsamples.5.time_conv.weight", "encoder.down_blocks.5.time_conv.weight"),
        ("encoder.middle.0.residual.2.weight", "encoder.mid_block.resnets.0.conv1.weight"),
        ("encoder.middle.1.to_qkv.weight", "encoder.mid_block.attentions.0.to_qkv.weight"),
        ("encoder.middle.2.residual.6.weight", "encoder.mid_block.resnets.1.conv2.weight"),
        ("encoder.head.0.gamma", "encoder.norm_out.gamma"),
        ("encoder.head.2.weight", "encoder.conv_out.weight"),
        ("conv1.weight", "quant_conv.weight"),
        ("conv2.weight", "post_quant_conv.weight"),
        ("decoder.conv1.weight", "decoder.conv_in.weight"),
        ("decoder.upsamples.2.residual.2.weight", "decoder.up_blocks.0.resnets.2.conv1.weight"),
        ("decoder.upsamples.3.resample.1.weight", "decoder.up_blocks.0.upsamplers.0.resample.1.weight"),
        ("decoder.upsamples.4.shortcut.weight", "decoder.up_blocks.1.resnets.0.conv_shortcut.weight"),
        ("decoder.upsamples.7.time_conv.weight", "decoder.up_blocks.1.upsamplers.0.time_conv.weight"),
        ("decoder.upsamples.14.residual.6.weight", "decoder.up_blocks.3.resnets.2.conv2.weight"),
    ],
)  # fmt: skip
def test_a_vae_tensor_is_renamed(released, diffusers):
    state = dict.fromkeys(("encoder.conv_in.weight", diffusers), torch.zeros(1))
    assert released in vae_state_dict(state, nets.WAN_VAE)


def test_the_released_vae_names_stay():
    state = Vae(nets.TOY_VAE).state_dict()
    assert_equal_states(vae_state_dict(state, nets.TOY_VAE), state)


@pytest.mark.parametrize("present", [("shared",), ("encoder.embed_tokens",), ("shared", "encoder.embed_tokens")])  # fmt: skip
def test_the_t5_embedding_is_found_under_either_name(present):
    embedding, other = torch.ones(3, 2), torch.zeros(2)
    state = {f"{name}.weight": embedding for name in present} | {
        "encoder.final_layer_norm.weight": other,
        "decoder.final_layer_norm.weight": other,
        "decoder.embed_tokens.weight": other,
        "lm_head.weight": other,
    }
    assert_equal_states(
        text_encoder_state_dict(state),
        {"encoder.embed_tokens.weight": embedding, "encoder.final_layer_norm.weight": other},
    )
