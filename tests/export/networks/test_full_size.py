# SPDX-License-Identifier: Apache-2.0
"""Blocks as wide as the released ones, and whole position tables, against diffusers' own."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_cosmos import (
    CosmosRotaryPosEmbed,
    CosmosTransformerBlock,
)

from predict2_export.checkpoint.names import dit_state_dict
from predict2_export.networks.dit import Block, RotaryTables, rotary_angles, rotary_table
from predict2_export.networks.fused import adaln_modulate
from predict2_spec import networks as nets

SPECS = {
    "0.6b-image": nets.DIT_0_6B_TEXT2IMAGE,
    "2b-image": nets.DIT_2B_TEXT2IMAGE,
    "2b-video": nets.DIT_2B_VIDEO2WORLD,
    "14b-image": nets.DIT_14B_TEXT2IMAGE,
    "14b-video": nets.DIT_14B_VIDEO2WORLD,
}
GRID = (2, 2, 3)


def diffusers_block(spec):
    """Diffusers' block with the original's epsilon and random weights of a layer's usual size."""
    with torch.device("meta"):
        block = CosmosTransformerBlock(
            spec.num_heads, spec.head_dim, spec.text_width, spec.mlp_ratio, spec.adaln_rank
        )
    block = block.to_empty(device="cpu").eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():
        if parameter.ndim == 1:  # of a norm
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:  # uniform numbers take a third of the time that normal ones take
            limit = math.sqrt(3 / parameter.shape[1])
            parameter.uniform_(-limit, limit, generator=generator)
    for part in block.modules():
        if isinstance(part, RMSNorm):
            part.eps = 1e-6
    return block


def released_block(spec, reference):
    """Our block with the weights of diffusers', which it shares."""
    with torch.device("meta"):
        block = Block(spec, None)
    prefix = "transformer_blocks.0."
    theirs = {prefix + key: value for key, value in reference.state_dict().items()}
    ours = dit_state_dict(theirs)
    weights = {key.removeprefix("blocks.0."): value for key, value in ours.items()}
    block.load_state_dict(weights, assign=True)
    return block.eval()


@pytest.mark.parametrize("case", ["0.6b-image", "2b-video", "14b-video"])
@torch.no_grad()
def test_a_block_of_full_width_equals_diffusers(case):
    spec = SPECS[case]
    reference = diffusers_block(spec)
    block = released_block(spec, reference)
    frames, rows, columns = GRID
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, frames, rows * columns, spec.width, generator=generator)
    time = torch.randn(1, frames, spec.width, generator=generator)
    time_shift = torch.randn(1, frames, 3 * spec.width, generator=generator)
    text = torch.randn(1, 7, spec.text_width, generator=generator)
    rope = CosmosRotaryPosEmbed(spec.head_dim, rope_scale=spec.rope_scale)
    rotation = rope(torch.empty(1, 1, frames, 2 * rows, 2 * columns))
    half = spec.head_dim // 2  # they repeat the angles for both halves of a head
    tables = RotaryTables(replace(spec, rope_dtype="float32"))(GRID)  # diffusers' precision
    torch.testing.assert_close(tables.of_tokens, torch.stack(rotation)[..., :half])
    modulations = block.modulations(time, time_shift)
    u = adaln_modulate(x, modulations[0])
    y, following = block(x, u, modulations, time_shift, text, tables, GRID)
    torch.testing.assert_close(following, adaln_modulate(y, time_shift))
    per_token = [
        modulation.repeat_interleave(rows * columns, dim=1) for modulation in (time, time_shift)
    ]
    expected = reference(x.flatten(1, 2), text, *per_token, image_rotary_emb=rotation)
    assert (y - x).std() > 0.5  # the block does something
    # Measured 2e-5 on values up to 20 at a width of 5120: float32 sums in another order.
    torch.testing.assert_close(y.flatten(1, 2), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", SPECS)
def test_exact_position_tables_are_diffusers_to_their_ends(case):
    spec = SPECS[case]
    rope = CosmosRotaryPosEmbed(spec.head_dim, rope_scale=spec.rope_scale)
    first = 0
    for axis, (positions, channels, scale) in enumerate(
        zip(spec.max_grid, spec.rope_dims, spec.rope_scale, strict=True)
    ):
        size = [1, 2, 2]  # one token, but along this axis all
        size[axis] *= positions
        theirs = torch.stack(rope(torch.empty(1, 1, *size)))  # [2, positions, channels of a head]
        theirs = theirs[..., first : first + channels // 2]
        first += channels // 2
        ours = rotary_table(rotary_angles(positions, channels, scale, torch.float32))
        # Measured equal. Angles reach 127 rad, whose float32 step is 8e-6, and two steps may differ
        # where a machine takes powers otherwise.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    assert first == spec.head_dim // 2
