# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: every layout that is published, and a plain refusal of everything else."""

import io
import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from predict2_export.checkpoint.files import read_checkpoint
from predict2_spec.errors import CheckpointError

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


FORMATS = [
    ("model.safetensors", save_file),
    ("model.pt", torch.save),
    ("model.pth", torch.save),
    ("pytorch_model.bin", save_legacy),
]


@pytest.mark.parametrize(("name", "save"), FORMATS)
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


@pytest.mark.parametrize(
    ("values", "found"),
    [({"state_dict": STATE}, "only state_dict;"), ({}, "only nothing;"), ([1], "only list;")],
)
def test_a_file_without_tensors_says_what_it_holds(tmp_path, values, found):
    torch.save(values, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=f"no tensors at its top level, {found}"):
        read_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_beside_what_training_left_are_found_by_their_name(tmp_path, zipped):
    beside = {"model": STATE, "optimizer": {"step": torch.tensor(3)}, "epoch": 7}
    torch.save(beside, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(tmp_path / "model.pt")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key].load(), value) for key, value in STATE.items())


ODD = {
    "whole": torch.arange(12.0).reshape(3, 4),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "empty": torch.zeros(0, 5),
    "parameter": nn.Parameter(torch.ones(2, dtype=torch.float16)),
    "integers": torch.arange(3),
    "fp8": torch.tensor([1.0, -2.0, 0.5]).to(torch.float8_e4m3fn),
    "flags": torch.tensor([True, False]),
}
ODD |= {
    "tied": ODD["whole"],
    "transposed": ODD["whole"].t(),
    "column": ODD["whole"][:, 1],
    "corner": ODD["whole"][1:, 2:],
}
TORCH_FORMATS = {
    "zip": torch.save,
    "legacy": save_legacy,
    "protocol 4": partial(torch.save, pickle_protocol=4),
    "protocol 5": partial(torch.save, pickle_protocol=5),
}


@pytest.mark.parametrize("save", TORCH_FORMATS.values(), ids=TORCH_FORMATS)
def test_shared_and_strided_storages_of_every_dtype_are_read(tmp_path, save):
    save(ODD, tmp_path / "model.pt")
    assert_equal_states(read_checkpoint(tmp_path / "model.pt"), ODD)


def test_safetensors_of_every_dtype_are_read(tmp_path):
    state = {key: value.detach().clone().contiguous() for key, value in ODD.items()}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal_states(read_checkpoint(tmp_path / "model.safetensors"), state)


@pytest.mark.parametrize("save", TORCH_FORMATS.values(), ids=TORCH_FORMATS)
def test_a_modules_state_dict_is_read_with_what_it_carries(tmp_path, save):
    state = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()  # with _metadata
    state["0.weight"].note = "a tensor's own attribute"
    save(state, tmp_path / "model.pt")
    assert_equal_states(read_checkpoint(tmp_path / "model.pt"), state)


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_layers_pickled_extra_state_is_left_out(tmp_path, save):
    save({**STATE, "norm._extra_state": io.BytesIO(b"scales")}, tmp_path / "model.pt")
    assert_equal_states(read_checkpoint(tmp_path / "model.pt"), STATE)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_equal_states(read_checkpoint(tmp_path / "model.pt"), STATE)


@pytest.mark.parametrize(("name", "save"), FORMATS)
def test_every_load_reads_anew(tmp_path, name, save):
    path = tmp_path / name
    save(STATE, path)
    tensor = read_checkpoint(path)["a.weight"]
    tensor.load().zero_()
    assert torch.equal(tensor.load(), STATE["a.weight"])
    path.unlink()
    with pytest.raises(CheckpointError, match=r"can't be read .*No such file"):
        tensor.load()


def test_nbytes_are_those_of_the_loaded_tensor(tmp_path):
    torch.save(ODD, tmp_path / "model.pt")
    for key, tensor in read_checkpoint(tmp_path / "model.pt").items():
        assert tensor.nbytes == ODD[key].numel() * ODD[key].element_size()


def shards_of_two_checkpoints(folder, change):
    """Shards of which the last is one of another checkpoint, and an index that says the bytes."""
    save_shards(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["metadata"] = {"total_size": 26}  # of STATE: six fp32 and a bf16
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equal_states(read_checkpoint(folder), STATE)
    save_file(change, folder / "model-1.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b.weight": torch.ones(1)}, r"hold 28 bytes of tensors, not 26; some are of another"),
        ({"c.weight": torch.ones(1)}, r"model-1\.safetensors is of another .* 2 tensors \(b\.weight, c\.weight\)"),
        (STATE, r"model-1\.safetensors holds 1 tensors of other shards again \(a\.weight\)"),
    ],
    ids=["another dtype", "another name", "a tensor too many"],
)  # fmt: skip
def test_a_shard_of_another_checkpoint_is_refused(tmp_path, change, message):
    shards_of_two_checkpoints(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path)
