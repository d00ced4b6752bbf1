# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from dataclasses import replace

import pytest

from predict2_spec.networks import (
    DILATED,
    DIT_0_6B_TEXT2IMAGE,
    DIT_2B_TEXT2IMAGE,
    DIT_2B_VIDEO2WORLD,
    DIT_2B_VIDEO2WORLD_SPARSE,
    DIT_14B_VIDEO2WORLD,
    DIT_14B_VIDEO2WORLD_SPARSE,
    PATCHES_3,
    PATCHES_5,
    PATCHES_7,
    SLABS,
    Neighborhood,
)


def test_patch_features_are_the_originals():
    assert DIT_2B_TEXT2IMAGE.patch_inputs == 68
    assert DIT_2B_VIDEO2WORLD.patch_inputs == 72
    assert DIT_2B_TEXT2IMAGE.patch_outputs == 64


def test_rotary_dims_of_a_head_are_the_originals():
    assert DIT_14B_VIDEO2WORLD.head_dim == 128
    assert DIT_14B_VIDEO2WORLD.rope_dims == (44, 42, 42)
    assert DIT_0_6B_TEXT2IMAGE.head_dim == 64
    assert DIT_0_6B_TEXT2IMAGE.rope_dims == (24, 20, 20)


# The published tables, block by block.
LAYERS = {
    "2b": (DIT_2B_VIDEO2WORLD_SPARSE, "AABCCBCCCCBDDDDDDDDDDDDEDDDC"),
    "14b": (DIT_14B_VIDEO2WORLD_SPARSE, "AAAAAAAAAAABBCCCCCCCCCCDEDE-EDDEEDED"),
}
KINDS = {
    "A": Neighborhood((None, 4, 16), (1, 1, 1), (1, 11, 5)),
    "B": Neighborhood((None, 12, 16), (1, 4, 1), (1, 1, 5)),
    "C": Neighborhood((None, 12, 24), (1, 4, 8), (1, 1, 1)),
    "D": Neighborhood((None, 20, 40), (1, 4, 8), (1, 1, 1)),
    "E": Neighborhood((None, 28, 56), (1, 4, 8), (1, 1, 1)),
    "-": None,
}


@pytest.mark.parametrize("size", LAYERS)
def test_sparse_networks_have_the_neighborhoods_they_were_trained_with(size):
    spec, kinds = LAYERS[size]
    assert spec.block_neighborhoods == tuple(KINDS[kind] for kind in kinds)
    assert len(spec.block_neighborhoods) == spec.num_blocks


def test_sparse_networks_differ_from_dense_ones_by_their_neighborhoods_only():
    assert replace(DIT_2B_VIDEO2WORLD_SPARSE, neighborhoods=()) == DIT_2B_VIDEO2WORLD
    assert replace(DIT_14B_VIDEO2WORLD_SPARSE, neighborhoods=()) == DIT_14B_VIDEO2WORLD
    assert DIT_2B_VIDEO2WORLD.block_neighborhoods == (None,) * 28


def test_neighborhoods_for_another_number_of_blocks_are_refused():
    with pytest.raises(ValueError, match="28 neighborhoods were given for 2 blocks"):
        replace(DIT_2B_VIDEO2WORLD_SPARSE, num_blocks=2)


@pytest.mark.parametrize("kind", [DILATED, SLABS, PATCHES_3, PATCHES_5, PATCHES_7])
def test_neighborhoods_on_the_grid_they_are_written_for_only_spell_out_whole_axes(kind):
    assert kind.on((24, 44, 80)) == replace(kind, window=(24, *kind.window[1:]))


# By hand from the original's rule; 480p's rows are scaled by 27/44 and its columns by 48/80.
SCALED = {
    "480p: 4.9, 24 x 0.6 = 14.4": (
        PATCHES_3, (24, 27, 48), ((24, 7, 14), (1, 2, 5), (1, 1, 1))
    ),
    "480p: 28 x 27/44 = 17.2, 56 x 0.6 = 33.6": (
        PATCHES_7, (16, 27, 48), ((16, 17, 34), (1, 2, 5), (1, 1, 1))
    ),
    "dilated windows fit: 11 x 27/44 = 6.75 is 7, but 27 // 2 = 13": (
        DILATED, (24, 27, 48), ((24, 2, 10), (1, 1, 1), (1, 7, 3))
    ),
    "half the grid: 2.5 rounds to 2": (
        DILATED, (3, 22, 40), ((3, 2, 8), (1, 1, 1), (1, 6, 2))
    ),
    "a tall picture: 12 x 80/44 = 21.8, 1 x 80/44 = 1.8, 16 x 44/80 = 8.8, 5 x 0.55 = 2.75": (
        SLABS, (24, 80, 44), ((24, 22, 9), (1, 7, 1), (1, 2, 3))
    ),
    "windows keep two tokens, strides one": (
        PATCHES_3, (3, 4, 5), ((3, 2, 2), (1, 1, 1), (1, 1, 1))
    ),
    "a window is no longer than its axis": (
        PATCHES_7, (2, 1, 2), ((2, 1, 2), (1, 1, 1), (1, 1, 1))
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALED)
def test_neighborhoods_scale_with_the_grid_as_the_originals(case):
    kind, grid, expected = SCALED[case]
    assert kind.on(grid) == Neighborhood(*expected)


def test_the_contract_needs_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules); import predict2_spec.tensors, predict2_spec.manifest, "
        "predict2_spec.results; new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'predict2_spec'}))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
