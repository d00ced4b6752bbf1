# SPDX-License-Identifier: Apache-2.0
"""Floors from the shapes against figures worked out by hand from the original's source."""

import pytest

from benchmarks.headline import EVALUATIONS, FP8_RATE, WORKLOADS, evaluation_flops, floor_s

# TFLOP of an evaluation and seconds of 72 at 790 TFLOP/s, with 14 d^2 per token and layer of linears, 4 N^2 d of
# self-attention and the text's attention; rounded as they were written down.
BY_HAND = {
    "2b-480p-16fps-text2image": (4_080, 17.8, 1.63),
    "2b-480p-16fps-video2world": (31_104, 328, 29.9),
    "2b-720p-16fps-video2world": (84_480, 1925, 175.4),
    "14b-480p-16fps-text2image": (4_080, 122.0, 11.1),
    "14b-480p-16fps-video2world": (31_104, 1547, 141.0),
    "14b-720p-16fps-video2world": (84_480, 7527, 686.0),
}


@pytest.mark.parametrize("of", WORKLOADS, ids=lambda of: of.name)
def test_floors_are_those_worked_out_by_hand(of):
    tokens, teraflops, seconds = BY_HAND[of.name]
    assert of.latent.tokens == tokens
    # three figures were written down
    assert evaluation_flops(of) / 1e12 == pytest.approx(teraflops, rel=4e-3)
    assert floor_s(of) == pytest.approx(seconds, rel=4e-3)
    assert floor_s(of, FP8_RATE) == pytest.approx(seconds * 790 / 1400, rel=4e-3)


def test_a_generation_is_36_guided_steps():
    assert EVALUATIONS == 72


def test_workloads_are_what_their_presets_serve():
    for of in WORKLOADS:
        of.preset.check(of.task, of.latent.pixels)
        assert floor_s(of) < of.published_s
        for target in (of.target_exact_s, of.target_fp8_s):
            assert target is None or floor_s(of, FP8_RATE) < target < of.published_s
    assert len({of.name for of in WORKLOADS}) == len(WORKLOADS)
