# SPDX-License-Identifier: Apache-2.0
"""The toy's random checkpoint: complete, repeatable, alive."""

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.checkpoint.fit import load_strict
from predict2_export.checkpoint.names import dit_state_dict, text_encoder_state_dict, vae_state_dict
from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_export.released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_TOWER
from predict2_export.toy import write_toy_checkpoint
from predict2_runtime.sampler import Guidance, guided_x0, initial_noise, update
from predict2_runtime.schedule import solver_steps
from predict2_spec.presets import TOY
from predict2_spec.video import LatentShape

torch.set_num_threads(2)

PATHS = (
    TOY.text2image_path,
    TOY.video2world_path,
    TOY.vae_path,
    TOY.text_encoder_path,
    TOY.tokenizer_path,
    *(f"{TOY.frame_guard_path}/{file}" for file in (GUARD_FACES, GUARD_CLASSIFIER, GUARD_TOWER)),
)
RANDOM = PATHS[:4]  # the others are the same for all seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    write_toy_checkpoint(folder)
    return folder


def load(module, state, path):
    load_strict(module, state, str(path))
    return module.eval()


def load_dit(folder, spec, path):
    return load(Dit(spec), dit_state_dict(read_checkpoint(folder / path)), path)


@pytest.fixture(scope="module")
def vae(folder):
    state = vae_state_dict(read_checkpoint(folder / TOY.vae_path), TOY.vae)
    return load(Vae(TOY.vae), state, TOY.vae_path)


@pytest.fixture(scope="module")
def embeds(folder):
    """Embeddings of two prompts, [2, N, D], made with the checkpoint's tokenizer and encoder."""
    state = text_encoder_state_dict(read_checkpoint(folder / TOY.text_encoder_path))
    encoder = load(TextEncoder(TOY.text_encoder), state, TOY.text_encoder_path)
    tokenizer = Tokenizer.from_file(str(folder / TOY.tokenizer_path))
    tokenizer.enable_padding(length=TOY.text_encoder.num_tokens, pad_id=0)
    encodings = tokenizer.encode_batch(["a red ball moves left", "a blue triangle rests"])
    with torch.no_grad():
        return encoder(
            torch.tensor([encoding.ids for encoding in encodings]),
            torch.tensor([encoding.attention_mask for encoding in encodings]),
        )


def written_files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_exactly_the_presets_files_are_written(folder):
    assert written_files(folder) == set(PATHS)


def test_weights_are_float32(folder):
    for path in RANDOM:
        assert {tensor.dtype for tensor in read_checkpoint(folder / path).values()} == {
            torch.float32
        }


def test_equal_seeds_write_equal_bytes_and_others_do_not(folder, tmp_path):
    write_toy_checkpoint(tmp_path / "same", seed=0)
    write_toy_checkpoint(tmp_path / "other", seed=1)
    for path in PATHS:
        content = (folder / path).read_bytes()
        assert (tmp_path / "same" / path).read_bytes() == content
        if path in RANDOM:
            assert (tmp_path / "other" / path).read_bytes() != content


def test_networks_share_no_weights(folder):
    states = [dit_state_dict(read_checkpoint(folder / path)) for path in PATHS[:2]]
    key = "blocks.0.mlp.layer1.weight"
    assert not torch.equal(states[0][key].load(), states[1][key].load())


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX's")
def test_files_have_the_modes_that_the_user_asked_for(tmp_path):
    before = os.umask(0o022)
    try:
        write_toy_checkpoint(tmp_path)
    finally:
        os.umask(before)
    assert {(tmp_path / path).stat().st_mode & 0o777 for path in PATHS} == {0o644}


def test_an_interrupted_write_leaves_the_old_file_and_no_other(folder, tmp_path, monkeypatch):
    write_toy_checkpoint(tmp_path)

    def write_half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(KeyboardInterrupt):
        write_toy_checkpoint(tmp_path, seed=1)
    assert written_files(tmp_path) == set(PATHS)
    for path in PATHS:
        assert (tmp_path / path).read_bytes() == (folder / path).read_bytes()


def test_tokenizer_gives_t5_ids_to_words(folder):
    tokenizer = Tokenizer.from_file(str(folder / TOY.tokenizer_path))
    assert tokenizer.get_vocab_size() <= TOY.text_encoder.vocab_size
    assert [tokenizer.id_to_token(number) for number in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert tokenizer.encode("").ids == [1]
    assert tokenizer.encode("Grüße 🎈 \0").ids == [2, 2, 2, 1]
    words = tokenizer.encode("A RED circle,moves\n left.")
    assert words.tokens == ["a", "red", "circle", ",", "moves", "left", "<unk>", "</s>"]
    assert words.ids == [tokenizer.token_to_id(token) for token in words.tokens]


def test_a_cut_prompt_still_ends_in_eos(folder):
    tokenizer = Tokenizer.from_file(str(folder / TOY.tokenizer_path))
    tokenizer.enable_truncation(4)
    assert tokenizer.encode("a red circle moves left").tokens == ["a", "red", "circle", "</s>"]


@torch.no_grad()
def test_vae_keeps_signals_of_a_useful_size(vae):
    frames = 2 * torch.rand(1, 3, 5, 32, 48, generator=torch.Generator().manual_seed(0)) - 1
    latents = vae.encode(frames)
    assert 0.1 < latents.std() < 2
    assert 0.1 < vae.decode(latents).std() < 2


@pytest.mark.parametrize("task", ["text2image", "video2world"])
@torch.no_grad()
def test_velocity_depends_on_text_and_time(folder, embeds, task):
    spec, path = getattr(TOY, task), getattr(TOY, f"{task}_path")
    dit = load_dit(folder, spec, path)
    latents = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 1, 1, 8, 8) if spec.condition_mask else None

    def velocity(time, prompt):
        return dit(latents, torch.full((1, 1), time), embeds[prompt : prompt + 1], mask)

    one = velocity(0.9, 0)
    assert 0.3 < one.std() < 3
    assert (velocity(0.9, 1) - one).std() > 0.02
    assert (velocity(0.1, 0) - one).std() > 0.02


@pytest.mark.parametrize("frames", [1, 2])
@torch.no_grad()
def test_a_whole_generation_stays_bounded(folder, embeds, vae, frames):
    spec, path = (
        (TOY.text2image, TOY.text2image_path)
        if frames == 1
        else (TOY.video2world, TOY.video2world_path)
    )
    dit = load_dit(folder, spec, path)
    condition = None if frames == 1 else vae.encode(torch.zeros(1, 3, 1, 32, 32))[0]
    guidance = Guidance(embeds[0], embeds[1], scale=7.0)
    latents = torch.from_numpy(initial_noise(0, LatentShape(frames, 4, 4)))
    previous = torch.zeros_like(latents)
    for step in solver_steps(35):
        x0 = guided_x0(dit, latents, step.sigma, guidance, condition)
        latents, previous = update(step, latents, x0, previous), x0
    # measured: a deviation of 1.3, at most 5 anywhere
    assert 0.3 < latents.std() < 4
    assert latents.abs().max() < 20
