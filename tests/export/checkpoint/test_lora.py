# SPDX-License-Identifier: Apache-2.0
"""LoRA: merged as PEFT merges and as the formula says, or refused with what doesn't fit."""

import json
import math
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.checkpoint.fit import load_strict
from predict2_export.checkpoint.lora import merge_injected, merge_lora, read_adapter, split_lora
from predict2_export.checkpoint.names import dit_state_dict
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.networks.dit import Dit
from predict2_spec import networks as nets
from predict2_spec.errors import CheckpointError

RANK = 4
TARGETS = ("self_attn.q_proj", "self_attn.output_proj", "cross_attn.k_proj", "mlp.layer1", "mlp.layer2")  # fmt: skip


def stored(state):
    return {k: StoredTensor(tuple(v.shape), v.dtype, partial(torch.clone, v)) for k, v in state.items()}  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return Dit(nets.DIT_TOY_VIDEO2WORLD).state_dict()


def adapter_of(weights, name="{}.lora_{}.weight", rank=RANK, targets=TARGETS):
    """Random pairs for the first two blocks."""
    generator, adapter = torch.Generator().manual_seed(1), {}
    for block in range(2):
        for target in targets:
            layer = f"blocks.{block}.{target}"
            rows, columns = weights[f"{layer}.weight"].shape
            adapter[name.format(layer, "A")] = torch.randn(rank, columns, generator=generator)
            adapter[name.format(layer, "B")] = torch.randn(rows, rank, generator=generator)
    return adapter


def formula(weights, adapter, scale):
    """W + scale * B A in float64; the adapter by bare names."""
    merged = {key: value.double() for key, value in weights.items()}
    for key in adapter:
        if "lora_A" in key:
            up, down = adapter[key.replace("lora_A", "lora_B")].double(), adapter[key].double()
            merged[key.replace(".lora_A", "")] += scale * (up @ down)
    return merged


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def assert_rounded_once(merged, exact):
    """Half a step of the dtype, and what fp32 makes of sums of RANK + 1 terms up to 50."""
    bound = 1e-5 + exact.abs() * torch.finfo(merged.dtype).eps / 2
    assert ((merged.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (8.0, 2.0), (1.0, 0.25), (-4.0, -1.0)])
def test_merged_weights_are_those_of_the_formula(weights, dtype, alpha, scale):
    base, adapter = {k: v.to(dtype) for k, v in weights.items()}, adapter_of(weights)
    merged = merge_lora(stored(base), stored(adapter), alpha, "adapter")
    wanted = formula(base, adapter, scale)
    assert list(merged) == list(base)
    for key, tensor in merged.items():
        value = tensor.load()
        assert (tensor.shape, tensor.dtype) == (tuple(value.shape), value.dtype)
        assert value.dtype == dtype
        assert_rounded_once(value, wanted[key])
    changed = {key for key in merged if not torch.equal(merged[key].load(), base[key])}
    assert len(changed) == 2 * len(TARGETS)


def test_nothing_is_read_before_the_weights_are(weights):
    def refuse():
        raise AssertionError("read")

    unread = {k: StoredTensor(v.shape, v.dtype, refuse) for k, v in stored(weights).items()}
    adapter = {k: StoredTensor(v.shape, v.dtype, refuse) for k, v in stored(adapter_of(weights)).items()}  # fmt: skip
    merged = merge_lora(unread, adapter, None, "adapter")
    with pytest.raises(AssertionError, match="read"):
        merged["blocks.0.mlp.layer1.weight"].load()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_adapter_of_zeros_keeps_every_bit(weights, dtype):
    base = {key: value.to(dtype) for key, value in weights.items()}
    base["blocks.0.mlp.layer1.weight"][0, :2] = torch.tensor([-0.0, 2**-24], dtype=dtype)
    adapter = adapter_of(weights)
    for key in adapter:
        if "lora_B" in key:  # as training begins
            adapter[key].zero_()
    merged = merge_lora(stored(base), stored(adapter), 8.0, "adapter")
    for key, value in base.items():
        assert torch.equal(merged[key].load().view(torch.uint8), value.view(torch.uint8))


def test_the_base_is_not_changed(weights):
    held = {k: StoredTensor(tuple(v.shape), v.dtype, lambda v=v: v) for k, v in weights.items()}
    before = {key: value.clone() for key, value in weights.items()}
    for tensor in merge_lora(held, stored(adapter_of(weights)), None, "adapter").values():
        tensor.load()
    assert all(torch.equal(weights[key], before[key]) for key in weights)


DIFFUSERS = {
    "blocks.": "transformer_blocks.", "self_attn.q_proj": "attn1.to_q", "cross_attn.k_proj": "attn2.to_k",
    "self_attn.output_proj": "attn1.to_out.0", "mlp.layer1": "ff.net.0.proj", "mlp.layer2": "ff.net.2",
}  # fmt: skip


def diffusers_name(key):
    for ours, theirs in DIFFUSERS.items():
        key = key.replace(ours, theirs)
    return f"transformer.{key}"


NAMINGS = {
    "bare": lambda key: key,
    "PEFT": lambda key: f"base_model.model.{key}",
    "PEFT of the whole model": lambda key: f"base_model.model.net.{key}",
    "injected": lambda key: f"net.{key.replace('.weight', '.default.weight')}",
    "diffusers": diffusers_name,
}


@pytest.mark.parametrize("name", NAMINGS.values(), ids=NAMINGS)
def test_every_naming_means_the_same(weights, name):
    adapter = adapter_of(weights)
    merged = merge_lora(stored(weights), stored({name(k): v for k, v in adapter.items()}), 8.0, "a")
    plain = merge_lora(stored(weights), stored(adapter), 8.0, "a")
    assert all(torch.equal(merged[key].load(), plain[key].load()) for key in weights)


@pytest.mark.parametrize("ema", [False, True])
def test_a_post_trained_file_is_merged_with_its_own_adapters(weights, ema, tmp_path):
    """As training saves it: adapters injected, `base_layer` in the names, an average beside them."""
    adapter = adapter_of(weights)
    wrapped = {f"blocks.{block}.{target}" for block in range(2) for target in TARGETS}

    def injected(prefix, factor):
        state = {}
        for key, value in weights.items():
            layer = key.removesuffix(".weight")
            state[f"{prefix}{layer}.base_layer.weight" if layer in wrapped else f"{prefix}{key}"] = value  # fmt: skip
        for key, value in adapter.items():
            state[prefix + key.replace(".weight", ".default.weight")] = factor * value
        return state

    torch.save(injected("net.", 1.0) | injected("net_ema.", 0.5), tmp_path / "iter_1000.pt")
    state = dit_state_dict(read_checkpoint(tmp_path / "iter_1000.pt"), ema=ema)
    merged = merge_injected(state, 8.0, "iter_1000.pt")
    wanted = formula(weights, adapter, 2.0 * (0.25 if ema else 1.0))  # both factors are halved
    with torch.device("meta"):
        dit = Dit(nets.DIT_TOY_VIDEO2WORLD)
    load_strict(dit, merged, "iter_1000.pt")
    for key, value in dit.state_dict().items():
        assert_rounded_once(value, wanted[key])
    with pytest.raises(CheckpointError, match=r"holds LoRA weights beside the others: merge them"):
        load_strict(dit, state, "iter_1000.pt")


def test_a_state_without_adapters_stays(weights):
    base = stored(weights)
    assert merge_injected(base, None, "model.pt") == base
    assert split_lora(base) == (base, {})


@pytest.mark.parametrize("use_rslora", [False, True])
def test_adapters_of_peft_merge_as_peft_merges_them(weights, tmp_path, use_rslora):
    peft = pytest.importorskip("peft", reason="the independent reference for LoRA")
    dit = Dit(nets.DIT_TOY_VIDEO2WORLD)
    dit.load_state_dict(weights)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=6, use_rslora=use_rslora, target_modules=[t.split(".")[-1] for t in TARGETS]
    )  # fmt: skip
    model = peft.get_peft_model(dit, config)
    torch.manual_seed(2)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:  # zeros until it's trained
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path)
    assert adapter.alpha == pytest.approx(6 * (math.sqrt(RANK) if use_rslora else 1))
    ours = merge_lora(stored(weights), adapter.tensors, adapter.alpha, "adapter")
    injected = {f"net.{k}": v.clone() for k, v in model.base_model.model.state_dict().items()}
    torch.save(injected, tmp_path / "whole.pt")
    whole = dit_state_dict(read_checkpoint(tmp_path / "whole.pt"))
    whole = merge_injected(whole, adapter.alpha, "whole.pt")
    theirs = model.merge_and_unload().state_dict()
    assert not torch.equal(theirs["blocks.5.mlp.layer1.weight"], weights["blocks.5.mlp.layer1.weight"])  # fmt: skip
    for key, value in theirs.items():
        # Two fp32 sums of five terms of size up to 50, in another order.
        torch.testing.assert_close(ours[key].load(), value, rtol=1e-6, atol=2e-5)
        assert torch.equal(whole[key].load(), ours[key].load())


def save_adapter(folder, weights, config):
    save_file(adapter_of(weights), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8} | config))


def test_alpha_is_found_beside_the_adapter(weights, tmp_path):
    save_adapter(tmp_path, weights, {"peft_type": "LORA", "use_dora": False, "rank_pattern": {}})
    assert read_adapter(tmp_path).alpha == read_adapter(tmp_path / "adapter_model.safetensors").alpha == 8  # fmt: skip


def test_alpha_is_found_in_the_metadata_that_diffusers_writes(weights, tmp_path):
    path = tmp_path / "pytorch_lora_weights.safetensors"
    settings = {"transformer.r": RANK, "transformer.lora_alpha": 12, "text_encoder.r": 1}
    save_file(adapter_of(weights), path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    assert read_adapter(path).alpha == 12


def test_alpha_is_unknown_where_nothing_says_it(weights, tmp_path):
    torch.save(adapter_of(weights), tmp_path / "adapter.pt")
    assert read_adapter(tmp_path / "adapter.pt").alpha is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_dora": True}, "use_dora True"),
        ({"rank_pattern": {"q_proj": 8}}, r"rank_pattern \{'q_proj': 8\}"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"bias": "all"}, "bias 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["final_layer"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"a_setting_of_next_year": 1}, "a_setting_of_next_year 1"),
    ],
)
def test_settings_that_change_the_sum_are_refused(weights, tmp_path, config, message):
    save_adapter(tmp_path, weights, config)
    with pytest.raises(CheckpointError, match=rf"trained with {message}.*; merge it with PEFT"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": None}, "r None and lora_alpha 8; both have to be numbers"),
        ({"lora_alpha": "8"}, "r 4 and lora_alpha '8'; both have to be numbers"),
        ({"r": 8}, "weights of rank 4 and a configuration of rank 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(weights, tmp_path, config, message):
    save_adapter(tmp_path, weights, config)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_configuration_is_refused(weights, tmp_path, text):
    save_adapter(tmp_path, weights, {})
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"configuration of .* can't be read .*download it"):
        read_adapter(tmp_path)


LAYER = "blocks.0.mlp.layer1"
ZEROS = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{LAYER}.lora_B.weight": None}, rf"has lora_A for {LAYER}\.weight and no lora_B"),
        ({f"{LAYER}.lora_A.weight": None}, rf"has lora_B for {LAYER}\.weight and no lora_A"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(512, 3)}, r"lora_A \[4, 128\] and lora_B \[512, 3\] .* share no rank"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(512)}, "share no rank"),
        ({f"{LAYER}.lora_A.weight": torch.zeros(0, 128), f"{LAYER}.lora_B.weight": torch.zeros(512, 0)}, "share no rank"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(512, 4, dtype=torch.int8)}, r"lora_B as torch\.int8 for"),
        ({f"{LAYER}.lora_magnitude_vector.weight": ZEROS}, r"1 tensors that aren't plain LoRA \(blocks.*DoRA"),
        ({f"{LAYER}.alpha": ZEROS}, r"1 tensors that aren't plain LoRA \(blocks\.0\.mlp\.layer1\.alpha\)"),
        ({f"net.{LAYER}.lora_A.weight": ZEROS}, r"1 tensors that aren't plain LoRA \(net\.blocks"),
        ({f"{LAYER}.lora_A.second.weight": ZEROS, f"{LAYER}.lora_A.weight": None}, r"several adapters \(default, second\)"),
        ({"blocks.0.mlp.layer3.lora_A.weight": torch.zeros(4, 2), "blocks.0.mlp.layer3.lora_B.weight": torch.zeros(2, 4)},
         r"1 of 11 targets that the checkpoint lacks \(blocks\.0\.mlp\.layer3\.weight\)"),
    ],
)  # fmt: skip
def test_an_adapter_that_is_not_whole_is_refused(weights, change, message):
    adapter = adapter_of(weights) | change
    adapter = stored({key: value for key, value in adapter.items() if value is not None})
    with pytest.raises(CheckpointError, match=f"adapter\\.pt .*{message}"):
        merge_lora(stored(weights), adapter, None, "adapter.pt")


def test_an_adapter_of_another_size_is_refused():
    with torch.device("meta"):
        small = stored(Dit(nets.DIT_2B_VIDEO2WORLD).state_dict())
        adapter = stored(adapter_of(Dit(nets.DIT_14B_VIDEO2WORLD).state_dict()))
    with pytest.raises(CheckpointError, match=r"a\.pt doesn't fit the checkpoint: 10 of 10 targets of another shape \(blocks\.0\.self_attn\.q_proj\.weight is \[2048, 2048\] and the change \[5120, 5120\].*; use the base that"):  # fmt: skip
        merge_lora(small, adapter, None, "a.pt")


def test_a_file_without_lora_is_refused(weights):
    with pytest.raises(CheckpointError, match=r"a\.pt holds no LoRA weights .*, only x_embedder"):
        merge_lora(stored(weights), stored(weights), None, "a.pt")


@pytest.mark.parametrize("alpha", [math.nan, math.inf])
def test_an_alpha_that_is_no_number_is_refused(weights, alpha):
    with pytest.raises(CheckpointError, match=r"alpha (nan|inf) of a\.pt is no number"):
        merge_lora(stored(weights), stored(adapter_of(weights)), alpha, "a.pt")
