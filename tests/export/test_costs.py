# SPDX-License-Identifier: Apache-2.0
"""Formulas against the modules themselves: torch counts parameters, FLOPs and live bytes on the meta device."""

import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5Model

from predict2_export import costs
from predict2_export.networks.dit import Dit
from predict2_export.networks.text_encoder import TextEncoder
from predict2_export.networks.vae import Vae
from predict2_spec import networks as nets
from predict2_spec.video import LatentShape, VideoShape

TEXT_TOKENS = 512  # of every released network; any number would do
DITS = {
    name.removeprefix("DIT_").lower(): spec
    for name, spec in vars(nets).items()
    if isinstance(spec, nets.DitSpec)
}


def meta(make, dtype=torch.float32):
    """A network without storage, its tables included."""
    with torch.device("meta"):
        module = make()
    for part in module.modules():
        for name, table in part.named_buffers(recurse=False):
            setattr(part, name, table.to("meta"))
    return module.to(dtype)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def counted_flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def dit_inputs(spec, grid, text_tokens=TEXT_TOKENS, dtype=torch.float32):
    frames, rows, columns = grid
    size = (frames, 2 * rows, 2 * columns)
    inputs = [(1, 16, *size), (1, frames), (1, text_tokens, spec.text_width)]
    inputs += [(1, 1, *size)] if spec.condition_mask else []
    return [torch.empty(shape, dtype=dtype, device="meta") for shape in inputs]


@pytest.mark.parametrize("name", DITS)
def test_denoisers_have_as_many_parameters_as_the_module(name):
    assert costs.dit_parameters(DITS[name]) == count(meta(lambda: Dit(DITS[name])))


ONE_OF_EACH = (nets.DILATED, nets.SLABS, nets.PATCHES_3, nets.PATCHES_5, nets.PATCHES_7, None)
PASSES = {  # whole networks where that is quick; two blocks of the others, as all blocks are alike
    "toy image": (nets.DIT_TOY_TEXT2IMAGE, (1, 3, 5)),
    "toy video": (nets.DIT_TOY_VIDEO2WORLD, (4, 4, 4)),
    "0.6b": (nets.DIT_0_6B_TEXT2IMAGE, (1, 48, 85)),
    "2b 480p": (nets.DIT_2B_VIDEO2WORLD, (24, 27, 48)),
    "14b image": (replace(nets.DIT_14B_TEXT2IMAGE, num_blocks=2), (1, 64, 64)),
    "14b 720p": (replace(nets.DIT_14B_VIDEO2WORLD, num_blocks=2), (24, 44, 80)),
    "sparse": (
        replace(nets.DIT_2B_VIDEO2WORLD, num_blocks=6, neighborhoods=ONE_OF_EACH),
        (16, 44, 80),
    ),
}


@pytest.mark.parametrize("case", PASSES)
def test_a_pass_has_as_many_flops_as_torch_counts(case):
    spec, grid = PASSES[case]
    dit = meta(lambda: Dit(spec))
    counted = counted_flops(lambda: dit(*dit_inputs(spec, grid)))
    assert costs.dit_flops(spec, grid, TEXT_TOKENS).total == counted


def test_a_single_frame_is_dense_in_sparse_networks():
    dense = costs.dit_flops(nets.DIT_2B_VIDEO2WORLD, (1, 44, 80), TEXT_TOKENS)
    sparse = costs.dit_flops(nets.DIT_2B_VIDEO2WORLD_SPARSE, (1, 44, 80), TEXT_TOKENS)
    assert sparse == dense


@pytest.mark.parametrize(("size", "share"), [("2b", 0.1653), ("14b", 0.1712)])
def test_sparse_networks_see_the_published_mean_share_of_keys(size, share):
    grid = (24, 44, 80)
    keys = costs.seen_keys(DITS[f"{size}_video2world_sparse"], grid)
    assert sum(keys) / len(keys) / (24 * 44 * 80) == pytest.approx(share, abs=5e-5)


def test_8_bit_weights_are_the_matrices_of_attention_and_mlp():
    spec = nets.DIT_2B_VIDEO2WORLD
    dit = meta(lambda: Dit(spec))
    size = 0
    for name, parameter in dit.named_parameters():
        small = name.startswith("blocks.") and ("_proj." in name or ".mlp.layer" in name)
        size += parameter.numel() * (1 if small else 2)
    assert costs.dit_fp8_bytes(spec) == size


@pytest.mark.parametrize("spec", [nets.TOY_VAE, nets.WAN_VAE], ids=["toy", "released"])
def test_encoder_and_decoder_have_all_parameters_of_the_vae(spec):
    vae = meta(lambda: Vae(spec))
    encoder = costs.vae_parameters(costs.encoder_convs(spec))
    decoder = costs.vae_parameters(costs.decoder_convs(spec))
    assert encoder == count(vae.encoder) + count(vae.conv1)
    assert encoder + decoder == count(vae)


@pytest.mark.parametrize("spec", [nets.TOY_VAE, nets.WAN_VAE], ids=["toy", "released"])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_vae_has_as_many_flops_as_torch_counts(spec, frames):
    vae = meta(lambda: Vae(spec))
    shape = VideoShape(frames, 64, 96)
    latent = shape.latent
    clip = torch.empty(1, 3, frames, 64, 96, device="meta")
    latents = torch.empty(1, 16, latent.frames, 8, 12, device="meta")
    encoded = costs.vae_flops(spec, costs.encoder_convs(spec), latent)
    decoded = costs.vae_flops(spec, costs.decoder_convs(spec), latent)
    assert encoded == counted_flops(lambda: vae.encode(clip))
    assert decoded == counted_flops(lambda: vae.decode(latents))


# TFLOP that the original's VAE takes, by walking its code: it also multiplies the zeros before the
# first frame, which ours leaves out.
ORIGINAL_VAE = {
    "encode 720p": (costs.encoder_convs, VideoShape(93, 704, 1280), 428),
    "encode 720p, 61 frames": (costs.encoder_convs, VideoShape(61, 704, 1280), 281),
    "encode 480p": (costs.encoder_convs, VideoShape(93, 432, 768), 156),
    "encode 480p, 61 frames": (costs.encoder_convs, VideoShape(61, 432, 768), 102),
    "encode 1 frame": (costs.encoder_convs, VideoShape(1, 704, 1280), 6.3),
    "encode 5 frames": (costs.encoder_convs, VideoShape(5, 704, 1280), 24.6),
    "encode a picture": (costs.encoder_convs, VideoShape(1, 768, 1360), 7.4),
    "decode 720p": (costs.decoder_convs, VideoShape(93, 704, 1280), 717),
    "decode 720p, 61 frames": (costs.decoder_convs, VideoShape(61, 704, 1280), 471),
    "decode 480p": (costs.decoder_convs, VideoShape(93, 432, 768), 262),
    "decode 480p, 61 frames": (costs.decoder_convs, VideoShape(61, 432, 768), 172),
    "decode a picture": (costs.decoder_convs, VideoShape(1, 768, 1360), 11.6),
}


@pytest.mark.parametrize("case", ORIGINAL_VAE)
def test_the_vae_saves_the_zeros_before_the_first_frame(case):
    walk, shape, original = ORIGINAL_VAE[case]
    latent, convs = shape.latent, list(walk(nets.WAN_VAE))
    pixels = latent.height * latent.width
    zeros = sum(
        2 * conv.inputs * conv.outputs * conv.area * 2 * conv.place.pixels * pixels
        for conv in convs
        if conv.frames > 1 and not conv.skips_first
    )
    total = costs.vae_flops(nets.WAN_VAE, convs, latent) + zeros
    last_digit = 1 if original > 100 else 0.1
    assert total / 1e12 == pytest.approx(original, abs=last_digit / 2)


def test_t5_encoders_have_as_many_parameters_as_the_module():
    for spec in (nets.TOY_TEXT_ENCODER, nets.T5_11B):
        assert costs.text_encoder_parameters(spec) == count(
            meta(lambda spec=spec: TextEncoder(spec))
        )


def test_the_published_t5_has_the_decoder_too():
    config = T5Config(d_model=1024, d_kv=128, d_ff=65536, num_layers=24, num_heads=128)
    with torch.device("meta"):
        assert costs.whole_t5_parameters(nets.T5_11B) == count(T5Model(config))


def test_a_prompt_has_as_many_flops_as_torch_counts():
    spec = nets.TOY_TEXT_ENCODER
    encoder = TextEncoder(spec).eval()
    ids = torch.ones(1, spec.num_tokens, dtype=torch.int64)
    assert costs.text_encoder_flops(spec) == counted_flops(lambda: encoder(ids, ids))
    assert costs.text_encoder_flops(nets.T5_11B) / 1e12 == pytest.approx(5.36, abs=0.005)


class LiveBytes(TorchDispatchMode):
    """Watches the storages that operators make, and the most that live at once."""

    def __init__(self, module):
        super().__init__()
        self.seen = {
            tensor.untyped_storage()._cdata for tensor in (*module.parameters(), *module.buffers())
        }
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key, size):
        self.seen.discard(key)
        self.now -= size


@torch.no_grad()
def peak_bytes(module, run):
    with LiveBytes(module) as live:
        run()
    return live.peak


@pytest.mark.parametrize("name", ["0_6b_text2image", "2b_video2world", "14b_video2world"])
def test_working_memory_of_a_denoiser_is_what_lives_in_its_mlp(name, monkeypatch):
    # Attention as a fused kernel does it: nothing but its result.
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))
    spec, grid = replace(DITS[name], num_blocks=2), (2, 32, 32)
    dit = meta(lambda: Dit(spec), torch.bfloat16)
    inputs = dit_inputs(spec, grid, text_tokens=8, dtype=torch.bfloat16)
    peak = peak_bytes(dit, lambda: dit(*inputs))
    # Python's names hold four more: what a block is given, plain and modulated, what cross-attention made and what the
    # MLP is given.
    held = 4 * 2 * 32 * 32 * spec.width * costs.BF16_BYTES
    # 1 % more: modulation of two frames, and inputs
    assert costs.dit_activation_bytes(spec, grid) == pytest.approx(peak - held, rel=0.01)


@pytest.mark.parametrize("frames", [1, 9])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_working_memory_of_the_vae_is_a_bound_and_no_loose_one(part, frames):
    vae = meta(lambda: Vae(nets.WAN_VAE), torch.bfloat16)
    latent = LatentShape(1 + frames // 4, 16, 24)
    if part == "encoder":
        convs, run, shape = costs.encoder_convs, vae.encode, (1, 3, frames, 128, 192)
    else:
        convs, run, shape = costs.decoder_convs, vae.decode, (1, 16, latent.frames, 16, 24)
    source = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    peak = peak_bytes(vae, lambda: run(source))
    # An encoder's peak comes early, before all of the next chunk's past is kept.
    assert peak <= costs.vae_activation_bytes(convs(nets.WAN_VAE), latent) < 1.4 * peak
