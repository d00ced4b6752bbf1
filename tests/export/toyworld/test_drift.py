# SPDX-License-Identifier: Apache-2.0
"""The gate between levels: it lets small differences through and names large ones."""

import numpy as np
import torch

from predict2_export.toyworld.drift import drift
from predict2_export.toyworld.quality import Result
from predict2_export.toyworld.scene import draw, random_scene

RNG = np.random.default_rng(0)
SCENES = [random_scene(RNG, 80, 48) for _ in range(20)]
CLIPS = np.stack([draw(scene, 80, 48) for scene in SCENES])
LATENTS = torch.randn(20, 16, 4, 6, 10, generator=torch.Generator().manual_seed(0))


def result(clips, latents=LATENTS):
    found = Result("video2world")
    found.add(SCENES[: len(clips)], clips, latents[: len(clips)])
    return found


def noisy(amount):
    noise = np.random.default_rng(1).normal(0, amount, CLIPS.shape)
    return (CLIPS + noise).round().clip(0, 255).astype(np.uint8)


def test_small_differences_pass():
    found = drift(result(CLIPS), result(noisy(1), LATENTS + 0.01))
    assert found.problems() == []
    assert found.lost_rate == 0
    assert 40 < min(found.psnr_db) < max(found.psnr_db) < 60


def test_the_first_samples_of_the_exact_level_are_compared():
    found = drift(result(CLIPS), result(CLIPS[:5]))
    assert len(found.exact.scenes) == len(found.psnr_db) == 5
    assert min(found.cosine) > 0.9999


def test_blurred_frames_and_other_latents_are_named():
    (frames,) = drift(result(CLIPS), result(noisy(6))).problems()
    assert frames.startswith("video2world: ")
    assert frames.endswith("dB between the frames, the limit is 40.0")
    (latents,) = drift(result(CLIPS), result(CLIPS, LATENTS + 0.2)).problems()
    assert "the limit is 0.995" in latents


def test_samples_that_no_longer_show_what_was_asked_for_are_named():
    lost = CLIPS.copy()
    lost[:2] = lost[2:4][:, ::-1]  # two of twenty show another scene
    (problem,) = drift(result(CLIPS), result(lost)).problems()
    assert problem == "video2world: 10.0% fewer samples show what was asked for, the limit is 5%"
