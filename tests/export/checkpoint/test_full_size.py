# SPDX-License-Identifier: Apache-2.0
"""Files of the released sizes, made of holes: what reading them takes.

    pytest -m slow -s tests/export/checkpoint/test_full_size.py

prints the peak of memory and the seconds of each. Zeros that no disk had to bring: a disk adds the
time that it takes for the file, and an archive of released weights that of its checksums.
"""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import t5_config
from predict2_spec import networks as nets

PROGRAM = """
import json, re, sys, time
from pathlib import Path
import torch
from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.checkpoint.fit import load_strict
from predict2_export.checkpoint.names import dit_state_dict, text_encoder_state_dict
from predict2_export.networks.text_encoder import TextEncoder
from predict2_spec.networks import T5_11B

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

path, network = Path(sys.argv[1]), sys.argv[2]
with torch.device("meta"):
    module = TextEncoder(T5_11B).bfloat16()
before, began = memory("VmRSS"), time.monotonic()
state = read_checkpoint(path)
found = time.monotonic() - began
if network == "t5":
    load_strict(module, text_encoder_state_dict(state), str(path))
    weights = sum(tensor.nbytes for tensor in module.state_dict().values())
else:
    weights = 0  # 28.5 GB is more than many machines have: look at every tensor and drop it
    for tensor in dit_state_dict(state).values():
        tensor.load()
print(json.dumps({
    "tensors": len(state), "stored": sum(tensor.nbytes for tensor in state.values()),
    "largest": max(tensor.nbytes for tensor in state.values()), "weights": weights,
    "peak": memory("VmHWM") - before, "found": found, "seconds": time.monotonic() - began,
}))
"""


def t5_11b():
    """The whole T5, as its published file holds it: fp32, one embedding under three names."""
    config = T5Config(**t5_config(nets.T5_11B).to_dict() | {
        "is_encoder_decoder": True, "num_decoder_layers": 24, "tie_word_embeddings": True,
    })  # fmt: skip
    with torch.device("meta"):
        state = T5ForConditionalGeneration(config).state_dict()
    return {key: value for key, value in state.items() if key != "lm_head.weight"}


def dit_14b():
    with torch.device("meta"):
        network = Dit(nets.DIT_14B_VIDEO2WORLD).bfloat16()
    return {f"net.{key}": value for key, value in network.state_dict().items()}


def save_zip(state, path):
    """As torch.save does, with holes in place of numbers and without checksums."""
    with torch.serialization.skip_data():
        torch.save({key: torch.empty_like(value, device="cpu") for key, value in state.items()}, path)  # fmt: skip


class Storage:
    def __init__(self, key, tensor):
        self.pid = ("storage", torch.FloatStorage, key, "cpu", tensor.numel(), None)


class Tensor:
    def __init__(self, key, tensor):
        assert tensor.dtype == torch.float32
        self.storage, self.tensor = Storage(key, tensor), tensor

    def __reduce__(self):
        arguments = (self.storage, 0, tuple(self.tensor.shape), self.tensor.stride(), False, {})
        return torch._utils._rebuild_tensor_v2, arguments


class LegacyPickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Storage) else None


def save_legacy(state, path):
    """As torch.save did before it wrote archives, with holes in place of numbers."""
    keys = [str(number) for number in range(len(state))]
    with path.open("wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, protocol=2)
        tensors = zip(keys, state.items(), strict=True)
        LegacyPickler(file, 2).dump({name: Tensor(key, value) for key, (name, value) in tensors})
        pickle.dump(keys, file, protocol=2)
        for value in state.values():
            file.write(value.numel().to_bytes(8, "little"))
            file.seek(4 * value.numel(), os.SEEK_CUR)
        file.truncate()


def test_the_legacy_writer_here_writes_what_torch_reads(tmp_path):
    state = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)).state_dict()
    save_legacy(state, tmp_path / "model.bin")
    read = torch.load(tmp_path / "model.bin", weights_only=True)
    assert {key: value.shape for key, value in read.items()} == {
        key: value.shape for key, value in state.items()
    }
    assert not any(value.any() for value in read.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "save", "num_bytes"),
    [("t5", save_legacy, 45e9), ("t5", save_zip, 45e9), ("dit", save_zip, 28.5e9)],
    ids=["T5-11B legacy fp32", "T5-11B zip fp32", "14B DiT zip bf16, dropped tensor by tensor"],
)
def test_a_released_size_takes_little_more_than_its_weights(
    tmp_path, request, network, save, num_bytes
):
    path = tmp_path / "model.bin"
    save(t5_11b() if network == "t5" else dit_14b(), path)
    status = path.stat()
    assert status.st_size > num_bytes
    assert 512 * status.st_blocks < 2**28, "this file system has no holes"
    command = [sys.executable, "-c", PROGRAM, str(path), network]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    path.unlink()
    result = json.loads(run.stdout)
    print(f"\n{request.node.callspec.id}: {json.dumps(result)}")  # noqa: T201  # the measurement
    assert result["stored"] > num_bytes
    # Freed memory that glibc may keep (up to 32 MiB in one piece), and code loaded on first use.
    assert result["peak"] <= result["weights"] + result["largest"] + 2**26
