# SPDX-License-Identifier: Apache-2.0
"""The text encoder against transformers' T5EncoderModel, in torch and as an ONNX graph."""

import onnxruntime
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from predict2_export.checkpoint.fit import load_strict
from predict2_export.checkpoint.names import text_encoder_state_dict
from predict2_export.networks.text_encoder import TextEncoder
from predict2_spec import networks as nets

torch.set_num_threads(2)

SPEC = nets.TOY_TEXT_ENCODER
LENGTHS = (SPEC.num_tokens, 5)  # a prompt that was cut, and a short one


@pytest.fixture(scope="module")
def reference():
    """The released T5's settings, written out a second time, at the toy's sizes."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        layer_norm_epsilon=1e-6,
        feed_forward_proj="relu",
        dropout_rate=0.1,
    )
    return T5EncoderModel(config).eval()


@pytest.fixture(scope="module")
def encoder(reference):
    encoder = TextEncoder(SPEC).eval()
    load_strict(encoder, text_encoder_state_dict(reference.state_dict()), "transformers' weights")
    return encoder


def make_prompts(lengths, num_tokens=SPEC.num_tokens):
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(num_tokens) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(1, SPEC.vocab_size, mask.shape, generator=generator)
    return ids * mask, mask


@torch.no_grad()
def test_embeddings_equal_transformers(reference, encoder):
    ids, mask = make_prompts(LENGTHS)
    embeds = encoder(ids, mask)
    assert embeds.shape == (2, SPEC.num_tokens, SPEC.width)
    for row, length in enumerate(LENGTHS):
        # without padding, so that the mask is tested too
        expected = reference(ids[row : row + 1, :length]).last_hidden_state[0]
        assert expected.std() > 0.1
        # float32 sums over up to 32 positions, taken in another order
        torch.testing.assert_close(embeds[row, :length], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_rows_past_the_prompt_are_zero(encoder):
    embeds = encoder(*make_prompts(LENGTHS))
    assert torch.count_nonzero(embeds[1, 5:]) == 0
    assert (embeds[1, :5].abs().amax(dim=-1) > 0).all()


@torch.no_grad()
def test_the_training_mode_changes_nothing(encoder):
    # a serving network has no dropout, even where nobody called eval()
    inputs = make_prompts(LENGTHS)
    expected = encoder(*inputs)
    try:
        assert torch.equal(encoder.train()(*inputs), expected)
    finally:
        encoder.eval()


@torch.no_grad()
def test_onnx_graph_serves_any_batch(encoder, tmp_path):
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        encoder,
        make_prompts(LENGTHS),
        dynamo=True,
        opset_version=23,
        dynamic_shapes=({0: batch}, {0: batch}),
        verbose=False,
    )
    program.save(tmp_path / "text_encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "text_encoder.onnx")
    for lengths in ((32, 5), (1,), (3, 32, 16)):
        ids, mask = make_prompts(lengths)
        names = [tensor.name for tensor in session.get_inputs()]
        (embeds,) = session.run(None, dict(zip(names, (ids.numpy(), mask.numpy()), strict=True)))
        # two float32 libraries: measured 1e-6
        torch.testing.assert_close(torch.from_numpy(embeds), encoder(ids, mask), rtol=0, atol=1e-5)


def test_the_11b_encoder_has_as_many_parameters_as_its_shapes_add_up_to():
    with torch.device("meta"):
        encoder = TextEncoder(nets.T5_11B)
        theirs = T5EncoderModel(
            T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128)
        )
    # Embedding, 24 layers of four projections, two feed-forward matrices and two norms, the bias
    # of the first layer, the last norm.
    layer = 4 * 1024 * 16384 + 2 * 1024 * 65536 + 2 * 1024
    expected = 32128 * 1024 + 24 * layer + 32 * 128 + 1024
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected
    assert sum(parameter.numel() for parameter in theirs.parameters()) == expected
    assert round(expected / 1e9, 2) == 4.86
