# SPDX-License-Identifier: Apache-2.0
"""Memory of loading: a network costs its own weights, whatever the file's format and dtype."""

import json
import subprocess
import sys

import pytest

# Three layers of 80 MiB in fp32 and one of 96. Even their bf16 halves are beyond the 32 MiB up to
# which glibc may keep freed memory for later, as are the tensors that make up most of a T5-11B.
INPUTS, OUTPUTS = 8192, {"0": 2560, "1": 2560, "2": 2560, "head": 3072}
LARGEST = 4 * 3072 * INPUTS
TARGET = 2 * sum(OUTPUTS.values()) * INPUTS
SLACK = 8 * 2**20  # code and tables that are loaded on first use; measured 0.5 MiB

PROGRAM = f"""
import json, re, shutil, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from torch import nn
from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.checkpoint.fit import load_strict

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def make(device, dtype):
    with torch.device(device):
        layers = {{name: nn.Linear({INPUTS}, n, bias=False, dtype=dtype) for name, n in {OUTPUTS}.items()}}
    return nn.ModuleDict(layers)

def tensors():
    return {{
        f"{{name}}.weight": torch.full((n, {INPUTS}), i + 0.5)
        for i, (name, n) in enumerate({OUTPUTS}.items())
    }}

def save_shards(state, path):
    path.mkdir()
    for name in state:
        save_file({{name: state[name]}}, path / f"{{name}}.safetensors")
    index = {{"weight_map": {{name: f"{{name}}.safetensors" for name in state}}}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))

SAVERS = {{
    "a.pt": torch.save,
    "a.bin": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "a.safetensors": save_file,
    "shards": save_shards,
}}
torch.set_num_threads(1)
for name, save in SAVERS.items():
    path = Path(sys.argv[1]) / name
    save(tensors(), path)
    module = make("meta", torch.bfloat16)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    load_strict(module, read_checkpoint(path), name)
    peak = memory("VmHWM") - before
    last = [module[name].weight[-1, -1].item() for name in module]
    print(json.dumps([name, peak, last]), flush=True)
    del module
    shutil.rmtree(path) if path.is_dir() else path.unlink()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's count of resident pages")
def test_loading_takes_the_modules_memory_and_one_stored_tensor(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert [name for name, *_ in results] == ["a.pt", "a.bin", "a.safetensors", "shards"]
    for name, peak, last in results:
        assert last == [0.5, 1.5, 2.5, 3.5], name
        assert TARGET <= peak <= TARGET + LARGEST + SLACK, name
