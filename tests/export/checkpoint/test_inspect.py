# SPDX-License-Identifier: Apache-2.0
"""predict2-export inspect: names what a file holds, and which presets it fits, without reading it."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, CosmosTransformer3DModel
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from predict2_export.checkpoint import identify
from predict2_export.cli import main
from predict2_export.networks.content_filter import Classifier, VisionTower
from predict2_export.networks.dit import Dit
from predict2_export.networks.face_detector import FaceDetector
from predict2_export.networks.text_encoder import t5_config
from predict2_export.networks.vae import Vae
from predict2_export.released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_TOWER
from predict2_export.toy import TRAINED, write_toy_checkpoint
from predict2_spec import networks as nets
from predict2_spec.presets import PRESETS, TOY


def hollow(path, state):
    """A file of torch.save with the tensors' names, shapes and dtypes, and no numbers on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.serialization.skip_data():
        torch.save({key: torch.empty_like(value, device="cpu") for key, value in state.items()}, path)  # fmt: skip
    return path


def meta_state(make, *args, **kwargs):
    with torch.device("meta"):
        return make(*args, **kwargs).bfloat16().state_dict()


@cache
def dit_state(spec, prefix="net."):
    return {f"{prefix}{key}": value for key, value in meta_state(Dit, spec).items()}


def presets_with(**networks):
    """Presets whose networks have the shapes of these."""
    (task, spec), = networks.items()  # fmt: skip
    return [
        preset.name
        for preset in PRESETS.values()
        if getattr(preset, task) and replace(getattr(preset, task), neighborhoods=()) == spec
    ]


def inspect(capsys, *arguments):
    """Exit code, reports and error of the command with --json."""
    code = main(["inspect", "--json", *map(str, arguments)])
    output = capsys.readouterr()
    return code, json.loads(output.out), output.err


@pytest.mark.parametrize(
    ("task", "spec", "title"),
    [
        ("text2image", nets.DIT_0_6B_TEXT2IMAGE, "0.6B Text2Image denoiser"),
        ("text2image", nets.DIT_2B_TEXT2IMAGE, "2B Text2Image denoiser"),
        ("video2world", nets.DIT_2B_VIDEO2WORLD, "2B Video2World denoiser"),
        ("text2image", nets.DIT_14B_TEXT2IMAGE, "14B Text2Image denoiser"),
        ("video2world", nets.DIT_14B_VIDEO2WORLD, "14B Video2World denoiser"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_released_denoiser_is_recognized(tmp_path, capsys, task, spec, title):
    path = hollow(tmp_path / "model.pt", dit_state(spec))
    code, [report], _ = inspect(capsys, path)
    assert (code, report["title"], report["naming"]) == (0, title, "original")
    assert report["presets"] == presets_with(**{task: spec})
    assert report["container"] == "torch.save, zip archive"
    assert report["dtypes"] == {"bfloat16": report["num_tensors"]}
    assert report["file_bytes"] == path.stat().st_size
    assert report["tensor_bytes"] == 2 * sum(v.numel() for v in dit_state(spec).values())


def test_diffusers_networks_are_recognized(tmp_path, capsys):
    spec = nets.DIT_2B_VIDEO2WORLD
    transformer = meta_state(
        CosmosTransformer3DModel, in_channels=17, out_channels=16, num_attention_heads=16,
        attention_head_dim=128, num_layers=28, text_embed_dim=1024, adaln_lora_dim=256,
        rope_scale=spec.rope_scale, extra_pos_embed_type=None, concat_padding_mask=True,
    )  # fmt: skip
    encoder = meta_state(T5EncoderModel, t5_config(nets.T5_11B))
    paths = [
        hollow(tmp_path / "transformer" / "diffusion.pt", transformer).parent,
        hollow(tmp_path / "vae.pt", meta_state(AutoencoderKLWan)),
        hollow(tmp_path / "text_encoder.bin", encoder),
    ]
    code, reports, _ = inspect(capsys, *paths)
    assert code == 0
    assert [(report["title"], report["naming"]) for report in reports] == [
        ("2B Video2World denoiser", "diffusers"),
        ("VAE of base width 96", "diffusers"),
        ("T5 encoder of width 1024 and 24 layers", "transformers"),
    ]
    assert reports[0]["presets"] == presets_with(video2world=spec)
    assert reports[1]["presets"] == [n for n, preset in PRESETS.items() if preset.vae == nets.WAN_VAE]  # fmt: skip
    assert reports[2]["presets"] == [name for name in PRESETS if name != "toy"]


def test_the_toys_files_are_recognized(tmp_path, capsys):
    write_toy_checkpoint(tmp_path)
    paths = (TOY.text2image_path, TOY.video2world_path, TOY.vae_path, TOY.text_encoder_path)
    code, reports, _ = inspect(capsys, *(tmp_path / path for path in paths))
    assert code == 0
    assert {tuple(report["presets"]) for report in reports} == {("toy",)}
    assert {report["container"] for report in reports} == {"safetensors"}


def test_the_frame_guards_files_are_recognized(tmp_path, capsys):
    content, faces = nets.FRAME_GUARD.content, nets.FRAME_GUARD.faces
    with torch.device("meta"):
        tower = {f"vision_model.{k}": v for k, v in VisionTower(content).state_dict().items()}
        text = {"text_model.head.bias": torch.empty(4), "logit_scale": torch.empty(1)}
        classifier = {f"network.{k}": v for k, v in Classifier(content).state_dict().items()}
        detector = {f"module.{k}": v for k, v in FaceDetector(faces).state_dict().items()}
        landmarks = {"module.LandmarkHead.0.conv1x1.bias": torch.empty(20)}
    paths = [
        hollow(tmp_path / "tower.pt", {**tower, **text}),
        hollow(tmp_path / "classifier.pt", classifier),
        hollow(tmp_path / "faces.pth", {**detector, **landmarks}),
    ]
    guard = TRAINED / TOY.frame_guard_path
    toys = [guard / GUARD_TOWER, guard / GUARD_CLASSIFIER, guard / GUARD_FACES]
    code, reports, _ = inspect(capsys, *paths, *toys)
    assert code == 0
    assert [report["title"] for report in reports] == [
        "vision tower of width 1152",
        "content classifier of width 512",
        "face detector of width 64",
        f"vision tower of width {TOY.frame_guard.content.width}",
        f"content classifier of width {TOY.frame_guard.content.hidden[0]}",
        f"face detector of width {TOY.frame_guard.faces.base_width}",
    ]
    released = [name for name in PRESETS if name != "toy"]
    assert [report["presets"] for report in reports] == 3 * [released] + 3 * [["toy"]]


def test_a_whole_t5_says_what_is_never_read(tmp_path, capsys):
    config = T5Config(**t5_config(TOY.text_encoder).to_dict() | {"is_encoder_decoder": True, "num_decoder_layers": 2})  # fmt: skip
    state = T5ForConditionalGeneration(config).state_dict()
    torch.save(state, tmp_path / "t5.bin", _use_new_zipfile_serialization=False)
    code, [report], _ = inspect(capsys, tmp_path / "t5.bin")
    assert (code, report["presets"]) == (0, ["toy"])
    assert report["container"] == "torch.save, as before torch 1.6"
    assert any("holds the decoder too" in note for note in report["notes"])
    decoder = {key: value for key, value in state.items() if key.startswith("decoder.")}
    torch.save(decoder, tmp_path / "decoder.bin")
    code, _, error = inspect(capsys, tmp_path / "decoder.bin")
    assert code == 1
    assert "it is the decoder of a T5" in error


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("model-720p-16fps-natten.pt", "sparse by its file's name"),
        ("model_distilled.pt", "distilled by its file's name"),
    ],
)
def test_what_only_the_files_name_says_is_a_note(tmp_path, capsys, name, note):
    state = dit_state(nets.DIT_TOY_VIDEO2WORLD)
    _, reports, _ = inspect(capsys, hollow(tmp_path / name, state), hollow(tmp_path / "a.pt", state))  # fmt: skip
    assert [any(note in line for line in report["notes"]) for report in reports] == [True, False]


@pytest.mark.parametrize(
    ("prefixes", "note"),
    [
        (("net.", "net_ema."), "beside the others: 127 tensors"),
        (("net_ema.",), "load it with ema (build --load-ema)"),
    ],
)
def test_averaged_weights_are_a_note(tmp_path, capsys, prefixes, note):
    state = {}
    for prefix in prefixes:
        state |= dit_state(nets.DIT_TOY_VIDEO2WORLD, prefix)
    code, [report], _ = inspect(capsys, hollow(tmp_path / "iter.pt", state))
    assert (code, report["presets"]) == (0, ["toy"])
    assert any(note in line for line in report["notes"])


def lora_state(spec, name="{}.lora_{}.weight", rank=16):
    state = {}
    for key, value in meta_state(Dit, spec).items():
        if key.endswith(("attn.q_proj.weight", "mlp.layer1.weight")):
            rows, columns = value.shape
            layer = key.removesuffix(".weight")
            state[name.format(layer, "A")] = torch.empty(rank, columns, device="meta")
            state[name.format(layer, "B")] = torch.empty(rows, rank, device="meta")
    return state


def test_an_adapter_fits_what_it_can_be_added_to(tmp_path, capsys):
    path = hollow(tmp_path / "adapter.pt", lora_state(nets.DIT_2B_VIDEO2WORLD))
    code, [report], _ = inspect(capsys, path)
    assert code == 0
    assert report["title"] == "LoRA of rank 16 for 84 layers (cross_attn.q_proj, mlp.layer1, self_attn.q_proj)"  # fmt: skip
    assert report["presets"] == [name for name in PRESETS if name.startswith("2b-")]
    assert report["notes"] == ["alpha isn't stored: the rank is taken, give what training had"]
    (tmp_path / "adapter_config.json").write_text('{"r": 16, "lora_alpha": 32}')
    _, [report], _ = inspect(capsys, path)
    assert report["notes"] == ["alpha 32"]


def test_an_adapter_of_an_unknown_size_fits_nothing(tmp_path, capsys):
    spec = replace(nets.DIT_2B_VIDEO2WORLD, width=1024, num_blocks=2)
    code, [report], error = inspect(capsys, hollow(tmp_path / "a.pt", lora_state(spec)))
    assert (code, report["presets"]) == (1, [])
    assert "of another shape" in error
    assert "it was trained on another network" in error


def test_a_post_trained_file_with_adapters_is_recognized(tmp_path, capsys):
    spec = nets.DIT_TOY_VIDEO2WORLD
    state, adapters = (
        dict(dit_state(spec)),
        lora_state(spec, "net.{}.lora_{}.default.weight", rank=8),
    )
    for key in adapters:
        layer = key.partition(".lora_")[0]
        if f"{layer}.weight" in state:
            state[f"{layer}.base_layer.weight"] = state.pop(f"{layer}.weight")
    code, [report], _ = inspect(capsys, hollow(tmp_path / "iter.pt", state | adapters))
    assert (code, report["presets"]) == (0, ["toy"])
    assert report["title"].startswith("toy Video2World denoiser with LoRA of rank 8 for 18 layers")


def changed(**changes):
    return dit_state(nets.DIT_2B_TEXT2IMAGE) | {
        f"net.{key.replace('__', '.')}": torch.empty(shape, dtype=torch.bfloat16, device="meta")
        for key, shape in changes.items()
    }


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(x_embedder__proj__1__weight=(2048, 100), view_embeddings__weight=(7, 7)),
         "1 unexpected (view_embeddings.weight); 1 of another shape (x_embedder.proj.1.weight is [2048, 100], not [2048, 68]); it looks like a multiview denoiser, which isn't served"),
        (changed(action_embedder_B_D__fc1__weight=(8192, 84)), "it looks like an action-conditioned denoiser, which isn't served"),
        ({"model.layers.0.self_attn.q_proj.weight": torch.empty(1)}, "it is a language model"),
        ({"weight": torch.empty(1)}, "it is no network of this product; it holds weight"),
    ],
    ids=["multiview", "action", "language model", "unknown"],
)  # fmt: skip
def test_what_fits_nothing_says_why(tmp_path, capsys, state, message):
    code, [report], error = inspect(capsys, hollow(tmp_path / "model.pt", state))
    assert (code, report["presets"]) == (1, [])
    assert f"model.pt fits no preset: {report['reason']}" in error
    assert message in report["reason"]


def test_differences_from_the_nearest_network_are_listed(tmp_path, capsys):
    state = changed(extra__weight=(1,), final_layer__linear__weight=(64, 2047))
    del state["net.blocks.3.mlp.layer1.weight"]
    code, [report], _ = inspect(capsys, hollow(tmp_path / "model.pt", state))
    assert (code, report["nearest"]) == (1, "2B Text2Image denoiser")
    assert report["misfits"] == {
        "missing": ["blocks.3.mlp.layer1.weight"],
        "unexpected": ["extra.weight"],
        "misshapen": ["final_layer.linear.weight is [64, 2047], not [64, 2048]"],
        "coded": [],
    }


def test_one_bad_file_hides_no_other(tmp_path, capsys):
    bad, good = tmp_path / "bad.pt", tmp_path / "good.safetensors"
    bad.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    save_file(Vae(TOY.vae).state_dict(), good)
    code, reports, error = inspect(capsys, bad, good)
    assert code == 1
    assert "is a pointer of Git LFS" in reports[0]["error"]
    assert reports[1]["presets"] == ["toy"]
    assert "bad.pt" in error
    assert "good" not in error


def test_people_read_the_same(tmp_path, capsys):
    path = hollow(tmp_path / "model.pt", dit_state(nets.DIT_TOY_VIDEO2WORLD))
    assert main(["inspect", str(path)]) == 0
    brief = capsys.readouterr().out
    assert main(["inspect", "--tensors", str(path)]) == 0
    whole = capsys.readouterr().out
    assert brief.splitlines()[1:4] == [
        "  what     toy Video2World denoiser",
        "  names    original",
        f"  file     torch.save, zip archive, {path.stat().st_size / 1e6:.2f} MB",
    ]
    assert "  fits     toy" in brief
    assert whole.startswith(brief)
    assert "    net.x_embedder.proj.1.weight  bfloat16 [128, 72]" in whole
    assert len(whole.splitlines()) == len(brief.splitlines()) + 127


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])  # rchar: by every read call


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's count of bytes read")
def test_a_file_of_28_gigabytes_takes_next_to_no_reading(tmp_path):
    path = hollow(tmp_path / "model.pt", dit_state(nets.DIT_14B_VIDEO2WORLD))
    assert path.stat().st_size > 28e9
    identify.inspect(path)  # imports what it needs
    before = bytes_read()
    identify.inspect(path)
    assert bytes_read() - before < 2**23  # 727 headers in blocks of up to 8 KiB, and the directory
