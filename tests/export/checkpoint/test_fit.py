# SPDX-License-Identifier: Apache-2.0
"""Loading: a module gets exactly its weights, or an error that says what doesn't fit."""

import pytest
import torch
from torch import nn

from predict2_export.checkpoint.fit import load_strict
from predict2_export.networks.dit import Dit
from predict2_spec import networks as nets
from predict2_spec.errors import CheckpointError


def assert_equal_states(left, right):
    assert left.keys() == right.keys()
    for key, value in right.items():
        assert left[key].dtype == value.dtype
        assert torch.equal(left[key], value)


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
        load_strict(Dit(nets.DIT_TOY_VIDEO2WORLD), state, "text2image.safetensors")
