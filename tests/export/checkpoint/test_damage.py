# SPDX-License-Identifier: Apache-2.0
"""Files that are damaged, hostile or no checkpoints: a plain refusal, and nothing worse."""

import json
import os
import pickle
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from predict2_export.checkpoint.files import read_checkpoint
from predict2_spec.errors import CheckpointError

STATE = {
    "a.weight": torch.arange(6.0).reshape(2, 3),
    "b.weight": torch.tensor([1.5], dtype=torch.bfloat16),
}


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


FORMATS = {"model.safetensors": save_file, "model.pt": torch.save, "model.bin": save_legacy}


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


def changed_bytes(loaded, tensor):
    """How many bytes of a tensor another value changed."""
    left, right = (value.contiguous().view(torch.uint8) for value in (loaded, tensor))
    return (left != right).sum().item()


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_byte_is_refused_or_changes_only_itself(tmp_path, name):
    """Only the old format and safetensors let a number change: they have no checksums."""
    path = tmp_path / name
    FORMATS[name](STATE, path)
    whole, generator = path.read_bytes(), random.Random(0)
    refused = right = other = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= generator.randrange(1, 256)
        path.write_bytes(damaged)
        try:
            state = {key: tensor.load() for key, tensor in read_checkpoint(path).items()}
        except CheckpointError:
            refused += 1
            continue
        shapes = {key: (value.shape, value.dtype) for key, value in state.items()}
        if shapes == {key: (value.shape, value.dtype) for key, value in STATE.items()}:
            changed = sum(changed_bytes(state[key], STATE[key]) for key in STATE)
            right += changed == 0
            assert changed <= (0 if name == "model.pt" else 1)
        else:  # another name, shape or dtype, which the network that it's for refuses
            other += 1
    assert refused > 50
    assert right > 20 or name == "model.safetensors"  # whose every byte counts
    assert other == 0 or name != "model.pt"


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


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 28530000000\n", "is a pointer of Git LFS, .* run `git lfs pull`"),
        (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "is a web page"),
        (b"<HTML><body>403</body></HTML>", "is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page"),
        (b'{"error":"Access to model is restricted"}', "is a server's error message"),
        (b"", "is empty"),
    ],
)  # fmt: skip
def test_what_a_failed_download_left_is_called_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} {message}.*; download it again"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_this_user_may_not_read_is_refused(tmp_path, name, monkeypatch):
    FORMATS[name](STATE, tmp_path / name)

    def refuse(*_, **__):  # root, whom tests run as here and there, may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=r"can't be opened \(Permission denied\); check that"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short_after_it_was_opened_is_refused(tmp_path, name):
    path = tmp_path / name
    FORMATS[name](BIG, path)
    tensor = read_checkpoint(path)["weight"]
    os.truncate(path, 8192)
    with pytest.raises(CheckpointError, match=rf"{name} ends before byte \d+; download it again"):
        tensor.load()


def packed_again(path, compression=zipfile.ZIP_STORED, **changes):
    """The archive with other entries; `changes` are contents by the end of the name."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, changes.get(name.partition("/")[2].replace(".", "_"), content))
        for name in changes.keys() & {"constants_pkl"}:
            archive.writestr(f"model/{name.replace('_', '.')}", changes[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compression": zipfile.ZIP_DEFLATED}, "was compressed or encrypted after torch.save; unpack"),
        ({"constants_pkl": b""}, "is a TorchScript program"),
        ({"byteorder": b"big"}, "was saved on a big-endian machine"),
    ],
)  # fmt: skip
def test_an_archive_of_another_kind_is_refused(tmp_path, changes, message):
    path = tmp_path / "model.pt"
    torch.save(STATE, path)
    packed_again(path)
    assert read_checkpoint(path).keys() == STATE.keys()
    packed_again(path, **changes)
    with pytest.raises(CheckpointError, match=rf"model\.pt {message}"):
        read_checkpoint(path)


def test_a_zip_of_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model.safetensors", b"")
    with pytest.raises(CheckpointError, match=r"a zip archive, but none of torch\.save; unpack it"):
        read_checkpoint(tmp_path / "model.pt")


class Call:
    """Is pickled as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def view_of_four(shape, strides, offset=0):
    base = torch.zeros(4)
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, torch.storage.TypedStorage(wrap_storage=base.untyped_storage(), dtype=base.dtype, _internal=True), offset, shape, strides, False, {})  # fmt: skip


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_tensor_within_its_storage_is_read(tmp_path, save):
    save({"weight": view_of_four((3,), (1,), offset=1)}, tmp_path / "model.pt")
    assert read_checkpoint(tmp_path / "model.pt")["weight"].load().tolist() == [0, 0, 0]


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize(
    "view",
    [
        view_of_four((5,), (1,)),
        view_of_four((4,), (1,), offset=1),
        view_of_four((4,), (1,), offset=-1),
        view_of_four((2, 2), (4, 1)),
        view_of_four((2,), (-1,)),
        view_of_four((2,), (1, 1)),
        view_of_four((2**40,), (0,)),
        view_of_four((2**62, 2**62), (0, 0)),
        view_of_four((True, 2.0), (1, 1)),
        view_of_four("ab", (1, 1)),
    ],
    ids=str,
)
def test_a_tensor_outside_its_storage_or_larger_is_refused(tmp_path, save, view):
    save({"weight": view}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt can't be read .*; download it again"):
        read_checkpoint(tmp_path / "model.pt")


GREEDY = {
    "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**36),
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**36),
    "text": b"\x80\x04X" + struct.pack("<I", 2**32 - 1),
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**36),
    "a memo": b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b".",
    "a number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1),
    "a call": b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.",
}


@pytest.mark.parametrize("pickled", GREEDY.values(), ids=GREEDY)
@pytest.mark.parametrize("legacy", [False, True])
def test_lengths_that_a_file_claims_take_no_memory(tmp_path, legacy, pickled):
    path = tmp_path / "model.pt"
    (save_legacy if legacy else torch.save)(STATE, path)
    if legacy:
        whole = path.read_bytes()
        path.write_bytes(
            whole[: whole.index(b"\x80\x02}q\x00(X\x08\x00\x00\x00a.weight")]
            + pickled
            + bytes(2**20)
        )
    else:
        packed_again(path, data_pkl=pickled)
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20  # 8 MiB is what a pickle may take


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_program_beside_the_tensors_is_refused(tmp_path, save):
    save({"weight": torch.zeros(1), "decoder": bytes(2**23 + 1)}, tmp_path / "model.pt")
    with pytest.raises(
        CheckpointError, match=r"has \d+ bytes .* beside its tensors, where 8388608"
    ):
        read_checkpoint(tmp_path / "model.pt")


def test_a_safetensors_header_that_claims_much_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**25) + b" " * 2**10)
    with pytest.raises(CheckpointError, match=r"header of 33554432 bytes"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("end", [(0, 25), (4, 28), (0, 2**63)])
def test_a_safetensors_header_that_points_elsewhere_is_refused(tmp_path, end):
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": end}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(24))
    with pytest.raises(CheckpointError, match=r"is damaged or no safetensors file"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_dtype_without_a_counterpart_is_refused(tmp_path):
    header = json.dumps({"a": {"dtype": "F4", "shape": [4], "data_offsets": (0, 2)}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(CheckpointError, match=r"holds a as F4, .*; use the checkpoint in bf16"):
        read_checkpoint(tmp_path / "a.safetensors")


def test_a_wrong_number_in_an_archive_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(BIG, path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    tensor = read_checkpoint(path)["weight"]
    with pytest.raises(CheckpointError, match=r"checksum of bytes \d+ to \d+ is wrong"):
        tensor.load()
