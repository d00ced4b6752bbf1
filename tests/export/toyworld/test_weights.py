# SPDX-License-Identifier: Apache-2.0
"""The weights that ship: complete, small, and as good as the model card says."""

import pytest
import torch
from tokenizers import Tokenizer

from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.toy import TRAINED
from predict2_export.toyworld.checkpoint import load_networks
from predict2_export.toyworld.quality import judge_text2image, judge_vae, judge_video2world
from predict2_export.toyworld.tokenizer import word_tokenizer
from predict2_spec.presets import TOY

torch.set_num_threads(1)

PATHS = (TOY.text2image_path, TOY.video2world_path, TOY.vae_path, TOY.text_encoder_path)


@pytest.fixture(scope="module")
def networks():
    return load_networks(TRAINED)  # strictly: every tensor, no other


def test_the_files_are_half_precision_and_small():
    for path in PATHS:
        assert {t.dtype for t in read_checkpoint(TRAINED / path).values()} == {torch.float16}
    assert sum((TRAINED / path).stat().st_size for path in PATHS) <= 12e6


def test_the_tokenizer_is_the_one_that_was_trained_with():
    shipped = Tokenizer.from_file(str(TRAINED / TOY.tokenizer_path))
    assert shipped.get_vocab() == word_tokenizer().get_vocab()


# Limits are well under what the card reports for hundreds of samples: these few are for finding breaks.
def test_the_vae_keeps_clips(networks):
    result, ratios = judge_vae(networks.vae, 15)
    assert sum(ratios) / len(ratios) > 34.0
    assert result.rate("look")[0] >= 13


def test_pictures_show_what_the_prompt_says(networks):
    result = judge_text2image(networks, 25)
    assert result.rate("look")[0] >= 20


def test_clips_go_on_from_a_picture_as_the_prompt_says(networks):
    result = judge_video2world(networks, 15)
    assert result.rate("first")[0] >= 13
    assert result.rate("path")[0] >= 12
    assert result.rate("motion")[0] >= 10
    assert sum(result.given_psnr) / len(result.given_psnr) > 32.0
