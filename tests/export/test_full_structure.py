# SPDX-License-Identifier: Apache-2.0
"""Every released preset at its full width, from files of its true structure that are made of holes.

    pytest -m slow tests/export/test_full_structure.py

Names and shapes are diffusers', transformers' and the original's; the numbers were never written, so the disk holds
next to nothing.
"""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from transformers import T5EncoderModel, T5ForConditionalGeneration

from predict2_export.layouts import ALSO_DIFFUSERS, candidates, located
from predict2_export.networks.content_filter import Classifier, VisionTower
from predict2_export.networks.dit import Dit
from predict2_export.networks.face_detector import FaceDetector
from predict2_export.networks.text_encoder import t5_config
from predict2_export.networks.vae import Vae
from predict2_export.recipes import recipes
from predict2_export.released import GUARD_CLASSIFIER, GUARD_FACES, GUARD_TOWER
from predict2_spec.networks import VaeSpec
from predict2_spec.presets import PRESETS, TOY
from predict2_spec.tensors import served_stages

pytestmark = pytest.mark.slow
# The fast image tokenizer's structure is known from its file alone.
RELEASED = [p for p in PRESETS.values() if p is not TOY and isinstance(p.vae, VaeSpec)]
IN_DIFFUSERS_LAYOUT = [p for p in RELEASED if p.video2world_path.endswith(ALSO_DIFFUSERS)]


def save_torch(path, module, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.device("cpu"), torch.serialization.skip_data():
        state = {  # memory that is never touched takes none
            prefix + name: torch.empty(value.shape, dtype=value.dtype)
            for name, value in module.state_dict().items()
        }
        torch.save(state, path)


def save_safetensors(folder, state, shards):
    """Shards with a header and no data, and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names, index = sorted(state), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        header, end = {}, 0
        for name in names[number::shards]:
            start, end = end, end + state[name].numel() * state[name].element_size()
            dtype = {torch.bfloat16: "BF16", torch.float32: "F32"}[state[name].dtype]
            shape = list(state[name].shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            index[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def save_guard(preset, folder):
    guard, content = folder / preset.frame_guard_path, preset.frame_guard.content
    save_torch(guard / GUARD_FACES, FaceDetector(preset.frame_guard.faces), "module.")
    save_torch(guard / GUARD_CLASSIFIER, Classifier(content), "network.")
    tower = VisionTower(content).state_dict()
    tower = {f"vision_model.{name}": value for name, value in tower.items()}
    save_safetensors((guard / GUARD_TOWER).parent, tower, shards=1)
    (guard / GUARD_TOWER).with_name("model-00001-of-00001.safetensors").rename(guard / GUARD_TOWER)


def assert_fits(preset, folder):
    found = recipes(located(preset, folder), folder)
    assert [r.network for r in found] == [stage.name for stage in served_stages(preset)]
    for recipe in found:
        with torch.device("meta"):
            wanted = recipe.make().state_dict()
        weights = recipe.weights()
        assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in wanted.items()}


@pytest.mark.parametrize("preset", RELEASED, ids=lambda preset: preset.name)
def test_the_originals_files_fit(preset, tmp_path):
    with torch.device("meta"):
        save_torch(tmp_path / preset.text2image_path, Dit(preset.text2image).bfloat16(), "net.")
        if preset.video2world:
            clips = Dit(preset.video2world).bfloat16()
            save_torch(tmp_path / preset.video2world_path, clips, "net.")
        save_torch(tmp_path / preset.vae_path, Vae(preset.vae))
        config = t5_config(preset.text_encoder)
        config.is_encoder_decoder = True
        config.num_decoder_layers = config.num_layers
        file = tmp_path / preset.text_encoder_path / "pytorch_model.bin"
        save_torch(file, T5ForConditionalGeneration(config))
        save_guard(preset, tmp_path)
    (tmp_path / preset.tokenizer_path).write_text("{}")
    assert_fits(preset, tmp_path)


@pytest.mark.parametrize("preset", IN_DIFFUSERS_LAYOUT, ids=lambda preset: preset.name)
def test_diffusers_folders_fit(preset, tmp_path, diffusers_dit):
    found = {field: tmp_path / paths[-1] for field, paths in candidates(preset).items()}
    with torch.device("meta"):
        for spec, folder in (
            (preset.text2image, found["text2image_path"]),
            (preset.video2world, found["video2world_path"]),
        ):
            module = diffusers_dit(spec)
            save_safetensors(folder, module.bfloat16().state_dict(), shards=6)
        save_safetensors(found["vae_path"], AutoencoderKLWan().state_dict(), shards=1)
        encoder = T5EncoderModel(t5_config(preset.text_encoder)).bfloat16().state_dict()
        encoder.pop("encoder.embed_tokens.weight", None)  # tied, and stored once
        save_safetensors(found["text_encoder_path"], encoder, shards=2)
        save_guard(preset, tmp_path)
    found["tokenizer_path"].parent.mkdir(parents=True, exist_ok=True)
    found["tokenizer_path"].write_text("{}")
    assert_fits(preset, tmp_path)
