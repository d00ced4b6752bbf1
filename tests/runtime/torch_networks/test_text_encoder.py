# SPDX-License-Identifier: Apache-2.0
"""The torch text encoder against export's module, which is transformers' T5."""

from dataclasses import replace

import pytest
import torch

from predict2_runtime.torch_networks.text_encoder import TorchTextEncoder, text_encoder_weights
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import TOY_TEXT_ENCODER

torch.set_num_threads(1)

LONG = replace(TOY_TEXT_ENCODER, num_tokens=300)  # more than the largest distance of a bucket
# Sums are taken in another order; embeddings are up to 4.
ORDER = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.fixture
def reference():
    """From a dtype to export's module, which needs transformers."""
    pytest.importorskip("transformers")
    from predict2_export.networks.text_encoder import TextEncoder
    from predict2_export.toy import _TEXT_ENCODER_GAINS, randomize

    def make(dtype):
        module = TextEncoder(LONG).eval().requires_grad_(False)
        randomize(module, 0, _TEXT_ENCODER_GAINS)
        return module.to(dtype)

    return make


def engine(module, recorded=0):
    weights = text_encoder_weights(LONG, module.state_dict().__getitem__)
    return TorchTextEncoder(weights, recorded)


def prompts(tokens=LONG.num_tokens, lengths=(9, 140, 300)):
    """Ids and masks of prompts of several lengths, the last of which fills its row."""
    ids = torch.randint(1, LONG.vocab_size, (len(lengths), tokens), generator=torch.Generator().manual_seed(0))  # fmt: skip
    mask = (torch.arange(tokens) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("dtype", ORDER, ids=str)
def test_embeddings_are_the_modules(dtype, reference):
    module = reference(dtype)
    inputs = prompts()
    expected = module(*inputs.values())
    assert expected[2].std() > 0.5
    found = engine(module)(inputs)["prompt_embeds"]
    assert found.dtype == dtype
    assert (found - expected).abs().max() < ORDER[dtype]
    assert not found[0, 9:].any()


def test_bfloat16_is_rounded_where_the_module_rounds(reference):
    module = reference(torch.bfloat16)
    inputs = prompts()
    rounded = module(*inputs.values()).double()
    found = engine(module)(inputs)["prompt_embeds"].double()
    exact = module.double()(*inputs.values())
    assert (rounded - exact).norm() > 0.5
    assert (found - rounded).norm() < 0.3 * (rounded - exact).norm()


def test_one_engine_takes_rows_of_several_lengths(reference):
    module = reference(torch.float64)
    encoder = engine(module)
    for tokens, lengths in ((20, (3, 20)), (300, (5, 300)), (20, (7,)), (1, (1,))):
        inputs = prompts(tokens, lengths)
        found = encoder(inputs)["prompt_embeds"]
        assert (found - module(*inputs.values())).abs().max() < ORDER[torch.float64]


def test_recorded_prompts_are_the_launched_ones_to_the_bit(captures, reference):
    module = reference(torch.float32)
    recorded, launched = engine(module, recorded=2), engine(module)
    pairs = []
    for tokens, lengths in ((20, (3, 20)), (300, (5, 300)), (20, (7, 1)), (300, (300, 140))):
        inputs = prompts(tokens, lengths)
        inputs["input_ids"][0, 0] += len(pairs)
        pairs.append([encoder(inputs)["prompt_embeds"] for encoder in (recorded, launched)])
    assert captures.made == 2
    for found, expected in pairs:
        assert torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu_recorded_prompts_are_the_launched_ones_to_the_bit(dtype, reference):
    module = reference(dtype).cuda()
    recorded, launched = engine(module, recorded=1), engine(module)
    for lengths in ((3, 20), (7, 1)):
        inputs = {name: value.cuda() for name, value in prompts(20, lengths).items()}
        expected = launched(inputs)["prompt_embeds"]
        assert torch.equal(recorded(inputs)["prompt_embeds"], expected)


def test_inputs_it_does_not_take_are_refused(reference):
    encoder, inputs = engine(reference(torch.float32)), prompts()
    with pytest.raises(InvalidRequestError, match=r"of one shape, not .*'input_ids': .3, 299"):
        encoder(inputs | {"input_ids": inputs["input_ids"][:, 1:]})
    with pytest.raises(InvalidRequestError, match="takes input_ids and attention_mask"):
        encoder({"input_ids": inputs["input_ids"]})


@pytest.mark.gpu
def test_on_a_gpu_it_is_as_near_to_float64_as_the_module_in_bfloat16(reference):
    module = reference(torch.bfloat16)
    inputs = prompts()
    on_gpu = {name: value.cuda() for name, value in inputs.items()}
    module.cuda()
    found = engine(module)(on_gpu)["prompt_embeds"].cpu().double()
    rounded = module(*on_gpu.values()).cpu().double()
    exact = module.cpu().double()(*inputs.values())
    assert (found - exact).norm() < 1.2 * (rounded - exact).norm()
