# SPDX-License-Identifier: Apache-2.0
"""The torch VAE against export's module, which is held against diffusers elsewhere."""

from dataclasses import replace

import pytest
import torch

from predict2_export.networks.vae import Vae
from predict2_kernels import torch_ops, vae_ops
from predict2_runtime.torch_networks import rms_silu
from predict2_runtime.torch_networks import vae as module_under_test
from predict2_runtime.torch_networks.vae import VaeGraph, decode, decoder, encode, encoder
from predict2_spec import networks as nets
from predict2_spec.errors import InvalidRequestError

torch.set_num_threads(1)

SPECS = {"toy": nets.TOY_VAE, "released": replace(nets.WAN_VAE, base_width=8)}
# Sums are taken in another order; caches are up to 10, results about 2.
ORDER = {torch.float64: 1e-12, torch.float32: 1e-4}


@pytest.fixture
def reference(randomize):
    """From a spec and a dtype to export's module."""
    return lambda spec, dtype: randomize(Vae(spec)).to(dtype)


def graphs(spec, vae, half, recorded=0):
    """The engines (first, next) of the encoder or the decoder."""
    make, run, names = {
        "encoder": (encoder, encode, ("frames", "latents")),
        "decoder": (decoder, decode, ("latents", "frames")),
    }[half]
    weights = make(spec, vae.state_dict().__getitem__)
    return [VaeGraph(weights, run, names, following=f, recorded=recorded) for f in (False, True)]


def step_of(vae, half):
    """The module's own function."""
    return vae.encode_chunk if half == "encoder" else vae.decode_chunk


def chunks(half, dtype, counts=(1, 2, 1), seed=0):
    """Chunks of a clip: frames or latents, the first of one frame."""
    generator = torch.Generator().manual_seed(seed)
    for index, count in enumerate(counts):
        frames = 4 * count if index else 1
        shape = (1, 3, frames, 16, 24) if half == "encoder" else (1, 16, count, 2, 3)
        yield torch.randn(shape, generator=generator).to(dtype)


def stream(first, following, given):
    """Results and caches of chunks, each with what the one before left."""
    caches = {}
    for index, chunk in enumerate(given):
        engine = following if index else first
        outputs = engine({engine.inputs[0]: chunk, **caches})
        (result,) = (v for k, v in outputs.items() if not k.startswith("next_"))
        caches = {k.removeprefix("next_"): v for k, v in outputs.items() if k.startswith("next_")}
        yield result, list(caches.values())


def stream_reference(step, given):
    caches = None
    for chunk in given:
        result, caches = step(chunk, caches)
        yield result, caches


def largest(difference):
    return difference.abs().max().item()


class Operators:
    """The kernel's operators; on the CPU they compute its reference, and here refuse what they refuse on a GPU."""

    def rms_silu(self, x, gamma, silu):
        torch_ops._contiguous(x.movedim(1, -1), gamma)
        return vae_ops.rms_silu(x, gamma, silu)

    def rms_silu_into(self, x, gamma, out):
        torch_ops._contiguous(x.movedim(1, -1), gamma)
        vae_ops._stride("out", out)
        vae_ops.rms_silu_into(x, gamma, out)


@pytest.mark.parametrize("through", ["plain torch", "the kernel's operators"])
@pytest.mark.parametrize("dtype", ORDER, ids=str)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("name", SPECS)
def test_chunks_and_caches_are_the_modules(name, half, dtype, through, monkeypatch, reference):
    if through != "plain torch":
        monkeypatch.setattr(rms_silu, "_kernels", lambda x: Operators())
    vae = reference(SPECS[name], dtype)
    first, following = graphs(SPECS[name], vae, half)
    given = list(chunks(half, dtype))
    pairs = zip(
        stream(first, following, given), stream_reference(step_of(vae, half), given), strict=True
    )
    for (result, caches), (expected, kept) in pairs:
        assert expected.std() > 0.1
        assert result.dtype == dtype
        assert largest(result - expected) < ORDER[dtype]
        for ours, theirs in zip(caches, kept, strict=True):
            assert ours.shape == theirs.shape
            assert largest(ours - theirs) < ORDER[dtype]


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_bfloat16_is_as_near_to_float64_as_the_module_in_bfloat16(half, reference):
    vae = reference(nets.TOY_VAE, torch.bfloat16)
    first, following = graphs(nets.TOY_VAE, vae, half)
    given = list(chunks(half, torch.bfloat16))
    found = [result for result, _ in stream(first, following, given)]
    rounded = [result for result, _ in stream_reference(step_of(vae, half), given)]
    step = step_of(vae.double(), half)
    exact = [result for result, _ in stream_reference(step, [g.double() for g in given])]
    for ours, theirs, expected in zip(found, rounded, exact, strict=True):
        assert 0 < (ours.double() - expected).norm() < 1.3 * (theirs.double() - expected).norm()


def test_what_a_chunk_leaves_is_no_view_of_it(reference):
    vae = reference(nets.TOY_VAE, torch.float32)
    first, following = graphs(nets.TOY_VAE, vae, "decoder")
    for _, caches in stream(first, following, chunks("decoder", torch.float32)):
        for cache in caches:
            assert cache.untyped_storage().nbytes() == cache.numel() * cache.element_size()


def test_a_chunk_lies_in_memory_with_its_channels_last_all_the_way(monkeypatch, reference):
    seen = []
    conv3d = torch.nn.functional.conv3d

    def watched(x, weight, *rest):
        seen.append((x, weight))
        return conv3d(x, weight, *rest)

    vae = reference(nets.TOY_VAE, torch.float32)
    first, following = graphs(nets.TOY_VAE, vae, "decoder")
    monkeypatch.setattr(torch.nn.functional, "conv3d", watched)
    list(stream(first, following, chunks("decoder", torch.float32)))
    causal = [(x, weight) for x, weight in seen if weight.shape[2] == 3]
    assert causal
    for x, weight in causal:
        assert x.movedim(1, -1).is_contiguous()
        assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_inputs_that_are_no_chunk_are_refused(reference):
    vae = reference(nets.TOY_VAE, torch.float32)
    first, following = graphs(nets.TOY_VAE, vae, "decoder")
    one, two = torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 16, 2, 2, 2)
    with pytest.raises(InvalidRequestError, match="the first chunk has 2 frames and must have 1"):
        first({"latents": two})
    with pytest.raises(InvalidRequestError, match=r"takes \['latents'\] here, not \['frames'\]"):
        first({"frames": one})
    with pytest.raises(InvalidRequestError, match=r"takes \['cache_00', .* not \['latents'\]"):
        following({"latents": one})


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_recorded_chunks_of_two_clips_by_turns_leave_each_other_alone(half, captures, reference):
    vae = reference(nets.TOY_VAE, torch.float32)
    recorded = graphs(nets.TOY_VAE, vae, half, recorded=1)
    launched = graphs(nets.TOY_VAE, vae, half)
    clips = [list(chunks(half, torch.float32, (1, 1, 1, 1), seed)) for seed in (1, 2)]
    # chunks by turns, and all that came of them held until the end
    together = list(zip(*(stream(*recorded, clip) for clip in clips), strict=True))
    assert captures.made == 2
    for found, clip in zip(zip(*together, strict=True), clips, strict=True):
        for (result, caches), (expected, kept) in zip(found, stream(*launched, clip), strict=True):
            assert torch.equal(result, expected)
            assert all(map(torch.equal, caches, kept))
            assert all(ours.stride() == theirs.stride() for ours, theirs in zip(caches, kept, strict=True))  # fmt: skip


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_chunks_whose_kernels_outlast_their_launches_are_not_recorded(
    half, captures, monkeypatch, reference
):
    vae = reference(nets.TOY_VAE, torch.float32)
    for most, made in ((16 * 24, 2), (16 * 24 - 1, 0)):
        monkeypatch.setattr(module_under_test, "_RECORDED_PIXELS", most)
        captures.made = 0
        recorded = graphs(nets.TOY_VAE, vae, half, recorded=1)
        found = list(stream(*recorded, chunks(half, torch.float32, (1, 1))))
        assert captures.made == made
        assert all(result.isfinite().all() for result, _ in found)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_on_a_gpu_recorded_chunks_are_the_launched_ones_to_the_bit(half, dtype, reference):
    spec = replace(nets.WAN_VAE, base_width=16)
    vae = reference(spec, dtype).cuda()
    recorded, launched = graphs(spec, vae, half, recorded=1), graphs(spec, vae, half)
    clips = [[c.cuda() for c in chunks(half, dtype, (1, 1, 1, 1), seed)] for seed in (1, 2)]
    together = list(zip(*(stream(*recorded, clip) for clip in clips), strict=True))
    for found, clip in zip(zip(*together, strict=True), clips, strict=True):
        for (result, caches), (expected, kept) in zip(found, stream(*launched, clip), strict=True):
            assert torch.equal(result, expected)
            assert all(map(torch.equal, caches, kept))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_on_a_gpu_it_is_as_near_to_float64_as_the_module_in_its_type(half, dtype, reference):
    spec = replace(nets.WAN_VAE, base_width=16)  # which the kernel takes in both types
    vae = reference(spec, dtype)
    given = list(chunks(half, dtype))
    engines = graphs(spec, vae.cuda(), half)
    on_gpu = [chunk.cuda() for chunk in given]
    found = [result.cpu().double() for result, _ in stream(*engines, on_gpu)]
    rounded = [r.cpu().double() for r, _ in stream_reference(step_of(vae, half), on_gpu)]
    step = step_of(vae.cpu().double(), half)
    exact = [result for result, _ in stream_reference(step, [g.double() for g in given])]
    for ours, theirs, expected in zip(found, rounded, exact, strict=True):
        assert (ours - expected).norm() < 1.3 * (theirs - expected).norm()
