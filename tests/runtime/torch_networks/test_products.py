# SPDX-License-Identifier: Apache-2.0
"""Products in 8 bits, and the denoiser with them against export's module with the same roundings."""

from dataclasses import replace

import pytest
import torch

from predict2_export.fp8.dynamic_linear import DynamicFp8Linear
from predict2_export.networks.dit import Dit
from predict2_kernels import fp8_ops, torch_ops
from predict2_kernels.reference import quantize_rows
from predict2_runtime.torch_networks import fused
from predict2_runtime.torch_networks.denoiser import Savings, TorchDit
from predict2_runtime.torch_networks.dit import dit_weights
from predict2_runtime.torch_networks.products import Fp8Weight, packed, product, quantize
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import DIT_TOY_VIDEO2WORLD

torch.set_num_threads(1)

SPEC = replace(DIT_TOY_VIDEO2WORLD, num_blocks=3)
IN_BLOCK = [
    *(f"{kind}.{part}_proj" for kind in ("self_attn", "cross_attn") for part in ("q", "k", "v", "output")),
    "mlp.layer1",
    "mlp.layer2",
]  # fmt: skip


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weight(outputs, inputs):
    rows = quantize(normal(outputs, inputs, seed=1))
    return Fp8Weight(rows.codes, rows.scales[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_quantized_as_the_kernels_do(dtype):
    x = normal(3, 5, 64, dtype=dtype) * torch.logspace(-30, 30, 5)[:, None].to(dtype)
    x[0, 0] = 0
    found, (codes, scales) = quantize(x), quantize_rows(x)
    assert torch.equal(found.codes.view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(found.scales, scales)


def test_a_product_is_that_of_the_rounded_numbers():
    x, w = normal(2, 7, 64, dtype=torch.float64), weight(48, 64)
    rows = quantize(x)
    expected = (rows.codes.double() * rows.scales.double()) @ (
        w.codes.double() * w.scales.double()[:, None]
    ).T
    found = product(x, w)
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() < 1e-12
    assert torch.equal(product(rows, w), found)
    # three bits of mantissa: some 4 % of noise a number, averaged over 64
    exact = x @ (w.codes.double() * w.scales.double()[:, None]).T
    assert 0.005 < ((found - exact).norm() / exact.norm()).item() < 0.05


def test_each_row_has_a_scale_of_its_own():
    x, w = normal(4, 64, dtype=torch.float64), weight(48, 64)
    alone = product(x[1:2], w)
    x[0] *= 1e6
    assert torch.equal(product(x, w)[1:2], alone)


def test_what_is_packed_is_all_in_8_bits_or_nothing():
    ours, other = weight(16, 32), weight(8, 32)
    both = packed([ours, other])
    x = normal(3, 32)
    assert torch.equal(product(x, both), torch.cat([product(x, w) for w in (ours, other)], -1))
    with pytest.raises(InvalidRequestError, match="some are in 8 bits and others aren't"):
        packed([ours, normal(8, 32)])


@pytest.fixture
def coded_pair(randomize):
    """From a dtype and layers to export's module with those in FP8, and the engine's weights of the same."""

    def make(dtype, layers):
        dit, weights = randomize(Dit(SPEC)).to(dtype), {}
        for name, old in list(dit.named_modules()):
            if name in layers:
                rows = quantize(old.weight)
                new = DynamicFp8Linear(old.in_features, old.out_features)
                new.weight, new.weight_scale = rows.codes, rows.scales[:, 0]
                dit.set_submodule(name, new)
                weights[f"{name}.weight"] = Fp8Weight(new.weight, new.weight_scale)
        plain = dit.state_dict()
        return dit, dit_weights(SPEC, lambda name: weights.get(name, plain[name]))

    return make


def make_inputs(dtype, *, zero_text):
    text = normal(2, 7, SPEC.text_width, seed=2)
    if zero_text:
        text[1] = 0
    mask = torch.zeros(2, 1, 3, 6, 10)
    mask[:, :, 0] = 1
    inputs = {
        "hidden_states": normal(1, 16, 3, 6, 10, seed=3).repeat(2, 1, 1, 1, 1),
        "timestep": torch.tensor([[1e-4, 0.7, 0.7]] * 2),
        "encoder_hidden_states": text,
        "condition_mask": mask,
    }
    return {name: value.to(dtype) for name, value in inputs.items()}


CHOICES = {
    "all": [f"blocks.{i}.{part}" for i in range(3) for part in IN_BLOCK],
    "the middle block": [f"blocks.1.{part}" for part in IN_BLOCK],
    "MLPs": [f"blocks.{i}.mlp.layer{n}" for i in range(3) for n in (1, 2)],
    "what attention gives": [f"blocks.{i}.{k}_attn.output_proj" for i in range(3) for k in ("self", "cross")],
}  # fmt: skip


@pytest.mark.parametrize("through", ["plain torch", "the kernels' operators"])
@pytest.mark.parametrize("zero_text", [True, False], ids=["no prompt", "negative prompt"])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_denoiser_in_8_bits_is_the_module_in_8_bits(
    choice, zero_text, through, monkeypatch, coded_pair
):
    if through != "plain torch":
        monkeypatch.setattr(fused, "_kernels", lambda x, coded=False: fp8_ops if coded else torch_ops)  # fmt: skip
    dit, weights = coded_pair(torch.float64, CHOICES[choice])
    inputs = make_inputs(torch.float64, zero_text=zero_text)
    expected = dit(*inputs.values())
    for savings in (Savings(), Savings(shared_start=False, zero_text=False, kept=False)):
        found = TorchDit(weights, savings=savings)(inputs)["velocity"]
        # A number is float32 where it becomes a code, and another order of sums before moves its last bit.
        assert (found - expected).abs().max() < 1e-5
    exact, _ = coded_pair(torch.float64, [])
    distance = ((expected - exact(*inputs.values())).norm() / expected.norm()).item()
    assert 1e-3 < distance < 0.2


def test_layers_that_set_the_scale_of_all_else_are_refused_in_8_bits(coded_pair):
    with pytest.raises(
        InvalidRequestError, match=r"final_layer.linear is in 8 bits, which it can't"
    ):
        coded_pair(torch.float32, ["final_layer.linear"])


@pytest.mark.gpu
def test_a_product_on_a_gpu_is_that_of_the_cpu():
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no products of 8-bit floats")
    x, w = normal(2, 40, 256, dtype=torch.bfloat16), weight(512, 256)
    expected = product(x, w).float()
    on_gpu = Fp8Weight(w.codes.cuda(), w.scales.cuda())
    found = product(x.cuda(), on_gpu)
    assert found.dtype == torch.bfloat16
    # Rounded to bfloat16. Of a sum of 8-bit products Hopper keeps some 14 bits (DeepSeek-V3, arXiv:2412.19437, 3.3.2):
    # computed so in float64, these sums of 16 on average are off by 0.04 at most, near zero too.
    torch.testing.assert_close(found.cpu().float(), expected, rtol=2**-7, atol=2**-4)
