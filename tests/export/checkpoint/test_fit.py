# SPDX-License-Identifier: Apache-2.0
"""Loading: a module gets exactly its weights, or an error that says what doesn't fit."""

import re

import pytest
import torch
from torch import nn

from predict2_export.checkpoint.fit import check_fit, load_strict
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
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


def meta_state(network, spec):
    with torch.device("meta"):
        return network(spec).state_dict()


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def renamed(state, old, new):
    return {key.replace(old, new): value for key, value in state.items()}


TOY_DIT, TOY_VIDEO = nets.DIT_TOY_TEXT2IMAGE, nets.DIT_TOY_VIDEO2WORLD


@pytest.mark.parametrize(
    ("network", "spec", "state", "cause"),
    [
        (Dit, nets.DIT_2B_TEXT2IMAGE, lambda: meta_state(Dit, nets.DIT_2B_VIDEO2WORLD),
         "looks like a 2B Video2World denoiser, not a 2B Text2Image denoiser; use the"),
        (Dit, nets.DIT_2B_TEXT2IMAGE, lambda: meta_state(Dit, nets.DIT_0_6B_TEXT2IMAGE),
         "looks like a 0.6B Text2Image denoiser, not a 2B Text2Image denoiser; use the"),
        (Dit, TOY_DIT, lambda: meta_state(Vae, nets.WAN_VAE),
         "looks like a VAE of base width 96, not a toy Text2Image denoiser; use the"),
        (Vae, nets.TOY_VAE, lambda: meta_state(Vae, nets.WAN_VAE),
         "looks like a VAE of base width 96, not a VAE of base width 12; use the"),
        (TextEncoder, nets.TOY_TEXT_ENCODER, lambda: meta_state(Dit, TOY_DIT),
         "looks like a toy Text2Image denoiser, not a T5 encoder of width 64 and 2 layers; use the"),
        (TextEncoder, nets.TOY_TEXT_ENCODER, lambda: {}, "holds no T5 encoder, perhaps the decoder alone"),
        (TextEncoder, nets.TOY_TEXT_ENCODER,
         lambda: renamed(meta_state(TextEncoder, nets.TOY_TEXT_ENCODER), "DenseReluDense.wi.", "DenseReluDense.wi_0."),
         "looks like a T5 v1.1 or UMT5, not the T5 of 2019, which isn't served"),
        (Dit, TOY_DIT, lambda: prefixed("net_ema.", meta_state(Dit, TOY_DIT)), "holds only averaged weights: load them with ema"),
        (Dit, TOY_DIT, lambda: {"blocks.0.mlp.layer1.lora_A.weight": torch.zeros(4, 128)}, "looks like a LoRA adapter: give it together"),
        (Dit, TOY_DIT, lambda: renamed(meta_state(Dit, TOY_DIT), "layer1.", "layer1.base_layer."), "holds LoRA weights beside the others: merge"),
        (Dit, TOY_DIT, lambda: meta_state(Dit, TOY_DIT) | {"view_embeddings.weight": torch.zeros(7, 7)}, "looks like a multiview denoiser, which"),
        (Dit, TOY_DIT, lambda: renamed(meta_state(Dit, TOY_DIT), "q_proj", "q"), "looks like a Wan denoiser, which"),
        (Dit, TOY_DIT, lambda: {k: v for k, v in meta_state(Dit, TOY_DIT).items() if "blocks.5.mlp" not in k}, "looks like a part of one; use the whole"),
        (Dit, TOY_DIT, lambda: {k: v.to(torch.float8_e4m3fn) for k, v in meta_state(Dit, TOY_DIT).items()},
         "of no float dtype (x_embedder.proj.1.weight is float8_e4m3fn, t_embedder.1.linear_1.weight is float8_e4m3fn, t_embedder.1.linear_2.weight is float8_e4m3fn, ...); it's quantized: use the checkpoint in bf16 or fp32"),
    ],
    ids=["another task", "another size", "VAE for DiT", "another VAE", "DiT for T5", "no encoder", "T5 v1.1",
         "average only", "adapter", "LoRA beside", "multiview", "Wan", "a part", "fp8"],
)  # fmt: skip
def test_the_likely_cause_is_said(network, spec, state, cause):
    with torch.device("meta"):
        module = network(spec)
    with pytest.raises(CheckpointError, match=re.escape(cause)):
        check_fit(module, state(), "model.pt")


def test_integers_are_no_weights():
    with pytest.raises(CheckpointError, match=r"1 of no float dtype \(bias is int8\); it's quantized"):  # fmt: skip
        load_strict(layer(), GOOD | {"bias": torch.ones(2, dtype=torch.int8)}, "a.pt")


def test_stored_tensors_are_read_once_each_and_one_at_a_time():
    read = []

    def stored(key):
        return StoredTensor(tuple(GOOD[key].shape), torch.float32, lambda: read.append(key) or GOOD[key])  # fmt: skip

    module = layer("meta")
    load_strict(module, {key: stored(key) for key in GOOD}, "a.pt")
    assert_equal_states(module.state_dict(), GOOD)
    assert sorted(read) == ["bias", "weight"]


def test_parameters_keep_their_kind_and_strided_weights_become_contiguous():
    module = layer()
    module.bias.requires_grad_(False)
    load_strict(module, GOOD | {"weight": torch.arange(6.0).reshape(3, 2).t()}, "a.pt")
    assert module.weight.is_contiguous()
    assert isinstance(module.weight, nn.Parameter)
    assert [module.weight.requires_grad, module.bias.requires_grad] == [True, False]


def test_buffers_are_loaded_in_their_own_dtype():
    with torch.device("meta"):
        module = nn.BatchNorm1d(3).bfloat16()
    state = {k: torch.full(v.shape, 2, dtype=v.dtype) for k, v in nn.BatchNorm1d(3).state_dict().items()}  # fmt: skip
    load_strict(module, state, "a.pt")
    assert module.num_batches_tracked.dtype == torch.int64
    assert module.running_mean.dtype == torch.bfloat16
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
