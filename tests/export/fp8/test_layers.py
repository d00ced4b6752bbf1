# SPDX-License-Identifier: Apache-2.0
"""Which layers may be in FP8."""

import re

import pytest
import torch
from torch import nn

from predict2_export.fp8.layers import DEFAULT_LAYERS, Fp8Layers, candidates
from predict2_export.networks.dit import Dit
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import (
    DIT_2B_VIDEO2WORLD,
    DIT_14B_TEXT2IMAGE,
    DIT_TOY_TEXT2IMAGE,
    DIT_TOY_VIDEO2WORLD,
)


@pytest.mark.parametrize(
    ("spec", "first", "last"),
    [(DIT_TOY_VIDEO2WORLD, 1, 4), (DIT_2B_VIDEO2WORLD, 2, 25), (DIT_14B_TEXT2IMAGE, 3, 32)],
)
def test_the_outer_blocks_stay_exact(spec, first, last):
    blocks = {int(name.split(".")[1]) for name in DEFAULT_LAYERS.names(spec)}
    assert blocks == set(range(first, last + 1))


def test_every_linear_of_a_block_may_be_in_fp8_but_its_modulation():
    with torch.device("meta"):
        network = Dit(DIT_2B_VIDEO2WORLD)
    linears = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    in_blocks = {name for name in linears if name.startswith("blocks.") and "adaln" not in name}
    assert set(candidates(DIT_2B_VIDEO2WORLD)) == in_blocks
    assert len(linears - in_blocks) > 3 * DIT_2B_VIDEO2WORLD.num_blocks


def test_layers_can_be_chosen_by_pattern_and_blocks_by_number():
    names = Fp8Layers(kept_blocks=0, patterns=("mlp.*", "*.output_proj")).names(DIT_TOY_TEXT2IMAGE)
    assert {re.sub(r"blocks\.\d\.", "", name) for name in names} == {
        "mlp.layer1", "mlp.layer2", "self_attn.output_proj", "cross_attn.output_proj",
    }  # fmt: skip
    assert len(names) == 4 * DIT_TOY_TEXT2IMAGE.num_blocks


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (Fp8Layers(patterns=("adaln*",)), r"called 'adaln\*'; a block has self_attn\.q_proj, "),
        (Fp8Layers(kept_blocks=3), r"3 blocks at either end .* the network has 6; keep 0 to 2"),
        (Fp8Layers(kept_blocks=-1), r"-1 blocks at either end"),
    ],
)
def test_a_choice_that_fits_no_network_is_refused(layers, told):
    with pytest.raises(InvalidRequestError, match=told):
        layers.names(DIT_TOY_TEXT2IMAGE)
