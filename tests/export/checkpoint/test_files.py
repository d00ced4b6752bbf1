# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: every layout that is published, and a plain refusal of everything else."""

import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from predict2_export.checkpoint.files import read_checkpoint
from predict2_spec.errors import CheckpointError

torch.set_num_threads(2)

STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.tensor([1.5], dtype=torch.bfloat16),
}


def assert_equal_states(stored, tensors):
    assert stored.keys() == tensors.keys()
    for key, tensor in tensors.items():
        loaded = stored[key].load()
        assert stored[key].dtype == loaded.dtype == tensor.dtype
        assert stored[key].shape == tuple(loaded.shape) == tuple(tensor.shape)
        assert torch.equal(loaded, tensor)


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
    assert_equal_states(read_checkpoint(tmp_path if as_folder else tmp_path / name), STATE)


def save_shards(folder):
    index = {}
    for number, (key, value) in enumerate(STATE.items()):
        index[key] = f"model-{number}.safetensors"
        save_file({key: value}, folder / index[key])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_shards_are_put_together(tmp_path):
    save_shards(tmp_path)
    assert_equal_states(read_checkpoint(tmp_path), STATE)


def test_safetensors_are_preferred_in_a_folder(tmp_path):
    save_file(STATE, tmp_path / "model.safetensors")
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert_equal_states(read_checkpoint(tmp_path), STATE)


def test_values_beside_the_tensors_are_left_out(tmp_path):
    torch.save({**STATE, "iteration": 7, "name": "run"}, tmp_path / "model.pt")
    assert_equal_states(read_checkpoint(tmp_path / "model.pt"), STATE)


def test_a_missing_shard_is_named(tmp_path):
    save_shards(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards \(model-1\.safetensors\)"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    save_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json is no readable index of shards"):
        read_checkpoint(tmp_path)


def test_an_index_reads_no_file_outside_its_folder(tmp_path):
    save_file(STATE, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = {"weight_map": {"a.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks 1 of 1 shards \(secret\.safetensors\)"):
        read_checkpoint(folder)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.pt doesn't exist; download"):
        read_checkpoint(tmp_path / "model.pt")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint \(\.safetensors, \.pt"):
        read_checkpoint(tmp_path)


def test_a_folder_with_two_checkpoints_asks_for_one(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file(STATE, tmp_path / name)
    with pytest.raises(
        CheckpointError, match=r"several checkpoints \(model\.fp16\.safetensors, mo"
    ):
        read_checkpoint(tmp_path)


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"suffix '\.onnx'; checkpoints end in \.safetensors"):
        read_checkpoint(tmp_path / "model.onnx")


BIG = {"weight": torch.zeros(4096)}  # so that half of a file ends among the numbers


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("model.safetensors", save_file, "is damaged or no safetensors file"),
        ("model.pt", torch.save, "is cut short; download it again"),
        ("model.bin", save_legacy, r"is cut short: \d+ of \d+ bytes are there; download it again"),
    ],
)
def test_a_truncated_file_is_refused(tmp_path, name, save, message):
    path = tmp_path / name
    save(BIG, path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match=rf"{name} {message}"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not weights at all\n", b"PK\x03\x04 not a zip either"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_a_file_of_something_else_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\{suffix} .*; download it again"):
        read_checkpoint(path)


def test_a_damaged_pickle_is_refused(tmp_path):
    torch.save(BIG, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "model.pt", "w") as damaged,
    ):
        for name in whole.namelist():
            damaged.writestr(name, b"?" if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(CheckpointError, match=r"model\.pt can't be read .*; download it again"):
        read_checkpoint(tmp_path / "model.pt")


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
            read_checkpoint(path)
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
        read_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path):
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match=r"is no file of torch\.save"):
        read_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("values", "found"),
    [({"state_dict": STATE}, "only state_dict;"), ({}, "only nothing;"), ([1], "only list;")],
)
def test_a_file_without_tensors_says_what_it_holds(tmp_path, values, found):
    torch.save(values, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"no tensors at its top level, {found}"):
        read_checkpoint(tmp_path / "model.pt")
