# SPDX-License-Identifier: Apache-2.0
"""What several folders of tests compare with."""

import pytest

from predict2_spec.networks import LATENT_CHANNELS


def _diffusers_dit(spec):
    from diffusers import CosmosTransformer3DModel  # takes seconds, and most tests do without
    from diffusers.models.normalization import RMSNorm

    module = CosmosTransformer3DModel(
        in_channels=LATENT_CHANNELS + int(spec.condition_mask),
        num_attention_heads=spec.num_heads,
        attention_head_dim=spec.head_dim,
        num_layers=spec.num_blocks,
        text_embed_dim=spec.text_width,
        adaln_lora_dim=spec.adaln_rank,
        rope_scale=spec.rope_scale,
        extra_pos_embed_type=None,
    )
    for part in module.modules():
        if isinstance(part, RMSNorm):
            part.eps = 1e-6  # the original's; diffusers leaves its own default of 1e-5
    return module


@pytest.fixture(scope="session")
def diffusers_dit():
    """From a DitSpec to diffusers' own network with the original's epsilon."""
    return _diffusers_dit
