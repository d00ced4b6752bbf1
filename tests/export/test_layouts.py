# SPDX-License-Identifier: Apache-2.0
"""Every released preset from files of its true structure: names, prefixes, folders and shards; widths are reduced.

The files are written by diffusers' and transformers' own classes, or by torch.save under the original's names.
"""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from predict2_export.checkpoint.names import dit_state_dict, text_encoder_state_dict, vae_state_dict
from predict2_export.checkpoint.synthetic import synthetic_weights
from predict2_export.layouts import ALSO_DIFFUSERS, candidates, located
from predict2_export.networks.dit import Dit
from predict2_export.networks.frame_guard import FrameGuard
from predict2_export.networks.vae import Vae
from predict2_export.recipes import PostTrained, recipes
from predict2_export.released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_TOWER
from predict2_export.toy import guard_files
from predict2_spec.errors import CheckpointError
from predict2_spec.networks import VaeSpec
from predict2_spec.presets import PRESETS, TOY
from predict2_spec.tensors import served_stages

RELEASED = [
    preset
    for preset in PRESETS.values()
    if preset is not TOY and isinstance(preset.vae, VaeSpec)  # the others' file is a program
]
IN_DIFFUSERS_LAYOUT = [
    preset for preset in RELEASED if preset.video2world_path.endswith(ALSO_DIFFUSERS)
]
LEFT_BY_TRAINING = ("accum_iteration", "pos_embedder.seq", "blocks.0.self_attn._extra_state")


def reduced_dit(spec):
    """Two narrow blocks of a network with the heads, ratios and windows of the full one."""
    return spec and replace(
        spec,
        width=2 * spec.head_dim,
        num_heads=2,
        num_blocks=2,
        text_width=32,
        adaln_rank=8,
        neighborhoods=spec.neighborhoods[:2],
    )


def reduced(preset):
    return replace(
        preset,
        text_encoder=replace(
            preset.text_encoder, width=32, num_layers=2, num_heads=2, head_dim=16, ff_width=64, vocab_size=100
        ),
        vae=replace(preset.vae, base_width=4),
        text2image=reduced_dit(preset.text2image),
        video2world=reduced_dit(preset.video2world),
        frame_guard=TOY.frame_guard,
    )  # fmt: skip


def values(module, seed, dtype=torch.bfloat16):
    return {name: w.load() for name, w in synthetic_weights(module, seed, dtype).items()}


def t5(spec):
    return T5EncoderModel(
        T5Config(
            d_model=spec.width, d_kv=spec.head_dim, d_ff=spec.ff_width, num_layers=spec.num_layers,
            num_heads=spec.num_heads, vocab_size=spec.vocab_size,
        )
    )  # fmt: skip


def write_original(preset, folder):
    """The files of a released preset as NVIDIA, Wan and Google publish them; returns what is in them."""

    def save(path, state):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / path)

    written = {}
    for seed, (stage, spec, path) in enumerate(
        (
            ("text2image_denoiser", preset.text2image, preset.text2image_path),
            ("video2world_denoiser", preset.video2world, preset.video2world_path),
        )
    ):
        if spec:
            written[stage] = values(Dit(spec), seed)
            net = {f"net.{name}": value for name, value in written[stage].items()}
            left = {f"net.{name}": torch.zeros(3) for name in LEFT_BY_TRAINING}
            save(path, {**net, **left})
    written["vae_decoder"] = values(Vae(preset.vae), 2)
    save(preset.vae_path, written["vae_decoder"])
    encoder = values(t5(preset.text_encoder), 3, torch.float32)
    # The published file is the whole model's: its decoder is left out by name.
    decoder = {"decoder.final_layer_norm.weight": torch.ones(3), "lm_head.weight": torch.ones(3)}
    save(f"{preset.text_encoder_path}/pytorch_model.bin", {**encoder, **decoder})
    (folder / preset.tokenizer_path).write_text("{}")
    written["text_encoder"] = text_encoder_state_dict(encoder)
    return written | write_guard(preset, folder)


def write_guard(preset, folder):
    """The frame guard's files with all that the published ones hold beside our networks."""
    guard = values(FrameGuard(preset.frame_guard), 4, torch.float32)
    files = {folder / preset.frame_guard_path / name: data for name, data in guard_files(guard).items()}  # fmt: skip
    for file, data in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    faces, classifier, tower = (
        folder / preset.frame_guard_path / name for name in (GUARD_FACES, GUARD_CLASSIFIER, GUARD_TOWER)
    )  # fmt: skip
    counter = torch.tensor(7)
    found = torch.load(faces, weights_only=True)
    left = {"LandmarkHead.0.conv1x1.bias": torch.zeros(20), "body.bn1.num_batches_tracked": counter}
    torch.save({f"module.{key}": value for key, value in {**found, **left}.items()}, faces)
    found = torch.load(classifier, weights_only=True)["model"]
    model = {**found, "network.layers.1.num_batches_tracked": counter}
    torch.save({"model": model, "epoch": 3}, classifier)
    text = {"text_model.head.bias": torch.zeros(4), "logit_scale": torch.zeros(1)}
    save_file({**load_file(tower), **text}, tower)
    return {"guardrail_video": guard}


def write_diffusers(preset, folder, diffusers_dit):
    """The same preset as diffusers' pipelines store it, in several shards."""
    found = {field: paths[-1] for field, paths in candidates(preset).items()}
    written = {}
    for stage, spec, path in (
        ("text2image_denoiser", preset.text2image, found["text2image_path"]),
        ("video2world_denoiser", preset.video2world, found["video2world_path"]),
    ):
        module = diffusers_dit(spec).bfloat16()
        module.save_pretrained(folder / path, max_shard_size="300KB")
        assert len(list((folder / path).glob("*.safetensors"))) > 1
        written[stage] = dit_state_dict(module.state_dict())
    vae = AutoencoderKLWan(base_dim=preset.vae.base_width)
    vae.save_pretrained(folder / found["vae_path"])
    written["vae_decoder"] = vae_state_dict(vae.state_dict(), preset.vae)
    text_encoder = t5(preset.text_encoder).bfloat16()
    text_encoder.save_pretrained(folder / found["text_encoder_path"])
    written["text_encoder"] = text_encoder_state_dict(text_encoder.state_dict())
    written |= write_guard(preset, folder)
    tokenizer = folder / found["tokenizer_path"]
    tokenizer.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.write_text("{}")
    return written


def assert_recipes_give(preset, folder, written):
    found = recipes(located(preset, folder), folder)
    assert [r.network for r in found] == [
        r.name for r in served_stages(preset)
    ]  # one for each stage
    for recipe in found:
        assert all(path.exists() for path in recipe.files)
        expected = written["vae_decoder" if "vae" in recipe.network else recipe.network]
        weights = recipe.weights()
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(weights[name].load(), value), name


@pytest.mark.parametrize("preset", RELEASED, ids=lambda preset: preset.name)
def test_a_preset_is_read_from_the_originals_files(preset, tmp_path):
    preset = reduced(preset)
    assert_recipes_give(preset, tmp_path, write_original(preset, tmp_path))


@pytest.mark.parametrize("preset", IN_DIFFUSERS_LAYOUT, ids=lambda preset: preset.name)
def test_a_preset_is_read_from_diffusers_folders(preset, tmp_path, diffusers_dit):
    preset = reduced(preset)
    assert_recipes_give(preset, tmp_path, write_diffusers(preset, tmp_path, diffusers_dit))


def test_the_networks_that_diffusers_has_are_those_of_2b_and_14b_at_720p_and_16_frames_a_second():
    assert [preset.name for preset in IN_DIFFUSERS_LAYOUT] == ["2b-720p-16fps", "14b-720p-16fps"]


def test_layouts_mix_file_by_file_and_the_originals_comes_first(tmp_path):
    preset = reduced(PRESETS["2b-480p-10fps"])
    write_original(preset, tmp_path)
    assert located(preset, tmp_path) == preset
    # The bfloat16 text encoder of the diffusers layout serves every preset of that size.
    (tmp_path / preset.text_encoder_path).rename(tmp_path / "moved")
    small = tmp_path / "nvidia/Cosmos-Predict2-2B-Video2World/text_encoder"
    t5(preset.text_encoder).bfloat16().save_pretrained(small)
    found = located(preset, tmp_path)
    assert tmp_path / found.text_encoder_path == small
    assert found.video2world_path == preset.video2world_path


def test_post_trained_weights_take_the_place_of_the_presets(tmp_path):
    preset = reduced(PRESETS["2b-480p-16fps"])
    write_original(preset, tmp_path)
    plain, average = (values(Dit(preset.video2world), seed) for seed in (10, 11))
    file = tmp_path / "mine.pt"
    torch.save(
        {f"net.{n}": v for n, v in plain.items()} | {f"net_ema.{n}": v for n, v in average.items()},
        file,
    )
    for ema, expected in ((False, plain), (True, average)):
        found = recipes(preset, tmp_path, post_trained={"video2world": PostTrained(file, ema)})
        recipe = next(r for r in found if r.network == "video2world_denoiser")
        weights = recipe.weights()
        assert all(torch.equal(weights[name].load(), expected[name]) for name in expected)
        pictures = next(r for r in found if r.network == "text2image_denoiser")
        assert pictures.checkpoint == tmp_path / preset.text2image_path


def test_an_adapter_is_added_to_the_weights_of_its_task(tmp_path):
    preset = reduced(PRESETS["2b-480p-16fps"])
    base = write_original(preset, tmp_path)["video2world_denoiser"]
    name = "blocks.1.self_attn.q_proj"
    down, up = torch.randn(2, 256), torch.randn(256, 2)
    file = tmp_path / "adapter.safetensors"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, file)
    change = {"video2world": PostTrained(adapter=file, alpha=6.0)}
    found = recipes(preset, tmp_path, post_trained=change)
    recipe = next(r for r in found if r.network == "video2world_denoiser")
    assert file in recipe.files
    weights = recipe.weights()
    expected = base[f"{name}.weight"].double() + 6.0 / 2 * (up.double() @ down.double())
    # Rounded to the base's bfloat16: 8 bits of mantissa.
    torch.testing.assert_close(
        weights[f"{name}.weight"].load().double(), expected, rtol=2**-8, atol=1e-3
    )
    others = base.keys() - {f"{name}.weight"}
    assert all(torch.equal(weights[other].load(), base[other]) for other in others)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("video2world_path", "text2image_path"),  # another task's network
        ("text2image_path", "vae_path"),  # no denoiser at all
    ],
)
def test_files_in_each_others_place_are_refused_by_the_file_that_is_wrong(tmp_path, name, path):
    preset = reduced(PRESETS["2b-720p-16fps"])
    write_original(preset, tmp_path)
    swapped = replace(preset, **{name: getattr(preset, path)})
    network = name.replace("_path", "_denoiser")
    recipe = next(r for r in recipes(swapped, tmp_path) if r.network == network)
    with pytest.raises(CheckpointError, match=str(tmp_path / getattr(preset, path))):
        recipe.weights()


@pytest.mark.parametrize(
    ("file", "other"),
    [(GUARD_FACES, GUARD_CLASSIFIER), (GUARD_CLASSIFIER, GUARD_FACES), (GUARD_TOWER, "")],
)
def test_of_the_frame_guards_files_the_one_that_is_wrong_is_named(tmp_path, file, other):
    preset = reduced(PRESETS["0.6b"])
    write_guard(preset, tmp_path)
    folder = tmp_path / preset.frame_guard_path
    if other:
        (folder / file).write_bytes((folder / other).read_bytes())
    else:
        save_file({"vision_model.head.probe": torch.zeros(1, 1, 32)}, folder / file)
    recipe = next(r for r in recipes(preset, tmp_path) if r.network == "guardrail_video")
    with pytest.raises(CheckpointError, match=f"{file} doesn't fit"):
        recipe.weights()
