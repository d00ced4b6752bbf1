# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: every layout that is published, and a plain refusal of everything else."""

import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import nn

from predict2_export.networks.dit import Dit
from predict2_export.networks.vae import Vae
from predict2_export.weights import (
    dit_state_dict,
    load_strict,
    read_state_dict,
    text_encoder_state_dict,
    vae_state_dict,
)
from predict2_spec import networks as nets
from predict2_spec.errors import CheckpointError

torch.set_num_threads(2)

STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.tensor([1.5], dtype=torch.bfloat16),
}


def assert_equal_states(left, right):
    assert left.keys() == right.keys()
    for key, value in right.items():
        assert left[key].dtype == value.dtype
        assert torch.equal(left[key], value)


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("model.safetensors", save_file),
        ("model.pt", torch.save),
        ("model.pth", torch.save),
        ("pytorch_model.bin", save_legacy),
    ],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_every_format_gives_the_tensors_back(tmp_path, name, save, as_folder):
    save(STATE, tmp_path / name)
    assert_equal_states(read_state_dict(tmp_path if as_folder else tmp_path / name), STATE)


def save_shards(folder):
    index = {}
    for number, (key, value) in enumerate(STATE.items()):
        index[key] = f"model-{number}.safetensors"
        save_file({key: value}, folder / index[key])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_shards_are_put_together(tmp_path):
    save_shards(tmp_path)
    assert_equal_states(read_state_dict(tmp_path), STATE)


def test_safetensors_are_preferred_in_a_folder(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_equal_states(read_state_dict(tmp_path), STATE)


def test_values_beside_the_tensors_are_left_out(tmp_path):
    torch.save({**STATE, "iteration": 7, "name": "run"}, tmp_path / "model.pt")
    assert_equal_states(read_state_dict(tmp_path / "model.pt"), STATE)


def test_a_missing_shard_is_named(tmp_path):
    save_shards(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards \(model-1\.safetensors\)"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    save_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is no readable index of shards"):
        read_state_dict(tmp_path)


def test_an_index_reads_no_file_outside_its_folder(tmp_path):
    save_file(STATE, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks 1 of 1 shards \(secret\.safetensors\)"):
        read_state_dict(folder)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.pt doesn't exist; download"):
        read_state_dict(tmp_path / "model.pt")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(\.safetensors, \.pt"):
        read_state_dict(tmp_path)


def test_a_folder_with_two_checkpoints_asks_for_one(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file(STATE, tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"several checkpoints \(model\.fp16\.safetensors, mo"
    ):
        read_state_dict(tmp_path)


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"suffix '\.onnx'; checkpoints end in \.safetensors"):
        read_state_dict(tmp_path / "model.onnx")


BIG = {"weight": torch.zeros(4096)}  # so that half of a file ends among the numbers


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("model.safetensors", save_file, "is damaged or no safetensors file"),
        ("model.pt", torch.save, "is cut short; download it again"),
        ("model.bin", save_legacy, "can't be read .*; download it again"),
    ],
)
def test_a_truncated_file_is_refused(tmp_path, name, save, message):
    path = tmp_path / name
    save(BIG, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=rf"{name} {message}"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [b"", b"not weights at all\n", b"PK\x03\x04 not a zip either"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_file_of_something_else_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\{suffix} .*; download it again"):
        read_state_dict(path)


def test_a_damaged_pickle_is_refused(tmp_path):
    torch.save(BIG, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "model.pt", "w") as damaged,
    ):
        for name in whole.namelist():
            damaged.writestr(name, b"?" if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(CheckpointError, match=r"model\.pt can't be read .*; download it again"):
        read_state_dict(tmp_path / "model.pt")


@pytest.mark.filterwarnings("ignore")  # torch comments on some of the damage
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_flipped_bytes_raise_no_other_error(tmp_path, save):
    path = tmp_path / "model.pt"
    save(STATE, path)
    whole, generator, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except CheckpointError:
            refused += 1
    assert refused > 50  # the others hit a number or padding


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not_run(tmp_path, save):
    save({"weight": torch.zeros(1), "bomb": Bomb(tmp_path / "exploded")}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"could run code .*; save its tensors alone"):
        read_state_dict(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match=r"is no file of torch\.save"):
        read_state_dict(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("values", "found"),
    [({"state_dict": STATE}, "only state_dict;"), ({}, "only nothing;"), ([1], "only list;")],
)
def test_a_file_without_tensors_says_what_it_holds(tmp_path, values, found):
    torch.save(values, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"no tensors at its top level, {found}"):
        read_state_dict(tmp_path / "model.pt")


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


def layer(device="cpu", dtype=torch.float32):
    return nn.Linear(3, 2, device=device, dtype=dtype)


GOOD = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_are_loaded_in_the_dtype_of_the_module(device):
    module = layer(device, torch.bfloat16)
    load_strict(module, GOOD, "good.pt")
    assert_equal_states(module.state_dict(), {k: v.bfloat16() for k, v in GOOD.items()})


def test_a_missing_key_is_named():
    with pytest.raises(CheckpointError, match=r"a\.pt doesn't fit Linear: .* 1 missing \(bias\); "):
        load_strict(layer(), {"weight": GOOD["weight"]}, "a.pt")


def test_an_extra_key_is_named():
    with pytest.raises(CheckpointError, match=r"of 2 tensors 1 unexpected \(scale\); use the"):
        load_strict(layer(), GOOD | {"scale": torch.ones(2)}, "a.pt")


def test_a_wrong_shape_is_named_with_both_shapes():
    with pytest.raises(CheckpointError, match=r"1 of another shape \(bias is \[3\], not \[2\]\)"):
        load_strict(layer(), GOOD | {"bias": torch.ones(3)}, "a.pt")


def test_long_lists_are_cut_and_counted():
    extra = {f"extra{number}": torch.ones(1) for number in range(50)}
    with pytest.raises(CheckpointError, match=r"50 unexpected \(extra0, extra1, extra2, \.\.\.\)"):
        load_strict(layer(), GOOD | extra, "a.pt")


def test_a_refused_checkpoint_changes_nothing():
    module = layer()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_strict(module, {"weight": GOOD["weight"]}, "a.pt")
    assert_equal_states(module.state_dict(), before)


def test_a_picture_checkpoint_is_no_video_checkpoint():
    state = Dit(nets.DIT_TOY_TEXT2IMAGE).state_dict()
    with pytest.raises(CheckpointError, match=r"x_embedder\.proj\.1\.weight is \[128, 68\], not \[128, 72\]"):  # fmt: skip
        load_strict(toy_dit(), state, "text2image.safetensors")
