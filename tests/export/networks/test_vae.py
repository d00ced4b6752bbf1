# SPDX-License-Identifier: Apache-2.0
"""The VAE against diffusers' own, streamed against whole, and lowered against torch."""

import onnx
import onnxruntime as ort
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from predict2_export.checkpoint.names import vae_state_dict
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.networks.vae import Vae
from predict2_export.networks.vae_graphs import export_graphs
from predict2_export.to_onnx import write_onnx
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import TOY_VAE, WAN_VAE, VaeSpec

SIZE = (24, 40)  # height, width: not square, odd in latents
SMALL = VaeSpec(base_width=8)  # the released network's layers, narrower
# One of each kind of layer: tracing time grows with their number.
FEW_LAYERS = VaeSpec(8, multipliers=(1, 1, 1), num_blocks=0, temporal_down=(False, True))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Convolutions this small lose more by waiting for a second thread than they gain."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def diffusers_vae(spec: VaeSpec) -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=spec.base_width,
        dim_mult=list(spec.multipliers),
        num_res_blocks=spec.num_blocks,
        temperal_downsample=list(spec.temporal_down),
    ).eval()


def randomise(vae: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in vae.named_parameters():
        # Ones would hide a forgotten or misplaced gamma.
        if name.endswith("gamma"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
        else:
            fan_in = max(parameter[0].numel(), 8)
            torch.nn.init.normal_(parameter, 0, fan_in**-0.5, generator=generator)


def random_vae(spec: VaeSpec, dtype: torch.dtype = torch.float64) -> Vae:
    vae = Vae(spec)
    randomise(vae)
    return vae.to(dtype).eval().requires_grad_(False)


def random_frames(num_frames: int, size=SIZE, dtype=torch.float64, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    frames = torch.rand(batch, 3, num_frames, *size, generator=generator, dtype=dtype)
    return 2 * frames - 1


def random_latents(num_frames: int, size=(3, 5), dtype=torch.float64, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(num_frames)
    return torch.randn(batch, 16, num_frames, *size, generator=generator, dtype=dtype)


@pytest.fixture(scope="module", params=[TOY_VAE, SMALL], ids=["toy", "small"])
def pair(request):
    """Ours and diffusers' with the same random weights, in float64, and their spec."""
    spec = request.param
    reference = diffusers_vae(spec)
    randomise(reference)
    with torch.no_grad():  # a small last layer keeps frames within the range diffusers clamps to
        for parameter in reference.decoder.conv_out.parameters():
            parameter.mul_(0.1)
    ours = Vae(spec)
    ours.load_state_dict(vae_state_dict(reference.state_dict(), spec))
    return (
        ours.double().eval().requires_grad_(False),
        reference.double().requires_grad_(False),
        spec,
    )


def per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1, 1)


@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_encoder_agrees_with_diffusers(pair, num_frames):
    ours, reference, spec = pair
    frames = random_frames(num_frames)
    posterior = reference.encode(frames).latent_dist.mode()
    expected = (posterior - per_channel(spec.mean)) / per_channel(spec.std)
    latents = ours.encode(frames)
    assert latents.shape == (1, 16, 1 + num_frames // 4, 3, 5)
    # Our mean and std are float32 values, whatever the weights are.
    torch.testing.assert_close(latents, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_latents", [1, 2, 4])
def test_decoder_agrees_with_diffusers(pair, num_latents):
    ours, reference, spec = pair
    latents = random_latents(num_latents)
    expected = reference.decode(latents * per_channel(spec.std) + per_channel(spec.mean)).sample
    assert expected.abs().max() < 1  # nothing was clamped
    frames = ours.decode(latents)
    assert frames.shape == (1, 3, 4 * num_latents - 3, *SIZE)
    # diffusers doubles height and width in float32, three times.
    torch.testing.assert_close(frames, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [(12,), (4, 8), (8, 4)])
def test_streamed_encoding_equals_the_whole_clips(chunks):
    vae, frames = random_vae(TOY_VAE), random_frames(13)
    first, *later = frames.split((1, *chunks), dim=2)
    latents, caches = vae.encode_chunk(first)
    done = [latents]
    for chunk in later:
        latents, caches = vae.encode_chunk(chunk, caches)
        done.append(latents)
    # Sums may be formed in another order for another chunk size; float64 leaves 1e-16 of that.
    torch.testing.assert_close(torch.cat(done, dim=2), vae.encode(frames), rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunks", [(3,), (1, 2), (2, 1)])
def test_streamed_decoding_equals_the_whole_clips(chunks):
    vae, latents = random_vae(TOY_VAE), random_latents(4)
    first, *later = latents.split((1, *chunks), dim=2)
    frames, caches = vae.decode_chunk(first)
    done = [frames]
    for chunk in later:
        frames, caches = vae.decode_chunk(chunk, caches)
        done.append(frames)
    torch.testing.assert_close(torch.cat(done, dim=2), vae.decode(latents), rtol=0, atol=1e-12)


def test_a_chunk_leaves_its_caches_as_they_were():
    vae = random_vae(TOY_VAE)
    _, caches = vae.decode_chunk(random_latents(1))
    copies = [cache.clone() for cache in caches]
    once, _ = vae.decode_chunk(random_latents(2), caches)
    again, _ = vae.decode_chunk(random_latents(2), caches)
    assert all(torch.equal(cache, copy) for cache, copy in zip(caches, copies, strict=True))
    assert torch.equal(once, again)


def test_caches_hold_their_own_frames_only():
    # A view into the chunk would keep all of it in memory.
    vae = random_vae(TOY_VAE)
    _, caches = vae.encode_chunk(random_frames(1))
    _, caches = vae.encode_chunk(random_frames(8), caches)
    for cache in caches:
        assert cache.untyped_storage().nbytes() == cache.nbytes


def test_later_frames_leave_earlier_latents_alone():
    vae, frames = random_vae(TOY_VAE), random_frames(13)
    _, caches = vae.encode_chunk(frames[:, :, :1])
    changed = frames.clone()
    changed[:, :, 9:] += 0.5
    before, _ = vae.encode_chunk(frames[:, :, 1:], caches)
    after, _ = vae.encode_chunk(changed[:, :, 1:], caches)
    torch.testing.assert_close(after[:, :, :2], before[:, :, :2], rtol=0, atol=1e-12)
    assert (after[:, :, 2] - before[:, :, 2]).abs().mean() > 1e-3


def test_later_latents_leave_earlier_frames_alone():
    vae, latents = random_vae(TOY_VAE), random_latents(4)
    _, caches = vae.decode_chunk(latents[:, :, :1])
    changed = latents.clone()
    changed[:, :, 3:] += 0.5
    before, _ = vae.decode_chunk(latents[:, :, 1:], caches)
    after, _ = vae.decode_chunk(changed[:, :, 1:], caches)
    torch.testing.assert_close(after[:, :, :8], before[:, :, :8], rtol=0, atol=1e-12)
    assert (after[:, :, 8:] - before[:, :, 8:]).abs().mean() > 1e-3


def test_clips_of_a_batch_do_not_mix():
    vae = random_vae(TOY_VAE)
    frames, latents = random_frames(5, batch=2), random_latents(2, batch=2)
    for whole, each in (
        (vae.encode(frames), [vae.encode(clip) for clip in frames.split(1)]),
        (vae.decode(latents), [vae.decode(clip) for clip in latents.split(1)]),
    ):
        torch.testing.assert_close(whole, torch.cat(each), rtol=0, atol=1e-12)


def test_bfloat16_stays_near_float32():
    exact, rounded = random_vae(TOY_VAE, torch.float32), random_vae(TOY_VAE, torch.bfloat16)
    frames, latents = (
        random_frames(5, dtype=torch.bfloat16),
        random_latents(2, dtype=torch.bfloat16),
    )
    for answer, expected in (
        (rounded.encode(frames), exact.encode(frames.float())),
        (rounded.decode(latents), exact.decode(latents.float())),
    ):
        assert answer.dtype == torch.bfloat16
        error = (answer - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt()
        # Some 80 operations one after another round to 8 bits, each with an error of 2**-9 at most;
        # the errors add up as in a random walk.
        assert error < 80**0.5 * 2**-9


def full_size_shapes() -> dict[str, tuple[int, ...]]:
    """Every parameter of the released file, written out layer by layer."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    def residual(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.residual.0.gamma"] = (inputs, 1, 1, 1)
        layer(f"{name}.residual.2", outputs, inputs, 3, 3, 3)
        shapes[f"{name}.residual.3.gamma"] = (outputs, 1, 1, 1)
        layer(f"{name}.residual.6", outputs, outputs, 3, 3, 3)
        if inputs != outputs:
            layer(f"{name}.shortcut", outputs, inputs, 1, 1, 1)

    def ends(name: str, first: tuple[int, int], last: tuple[int, int]) -> None:
        layer(f"{name}.conv1", *first, 3, 3, 3)
        residual(f"{name}.middle.0", 384, 384)
        shapes[f"{name}.middle.1.norm.gamma"] = (384, 1, 1)
        layer(f"{name}.middle.1.to_qkv", 1152, 384, 1, 1)
        layer(f"{name}.middle.1.proj", 384, 384, 1, 1)
        residual(f"{name}.middle.2", 384, 384)
        shapes[f"{name}.head.0.gamma"] = (last[1], 1, 1, 1)
        layer(f"{name}.head.2", *last, 3, 3, 3)

    ends("encoder", (96, 3), (32, 384))
    widths = {0: (96, 96), 1: (96, 96), 3: (96, 192), 4: (192, 192), 6: (192, 384)}
    for index, (inputs, outputs) in (widths | dict.fromkeys((7, 9, 10), (384, 384))).items():
        residual(f"encoder.downsamples.{index}", inputs, outputs)
    for index, width in {2: 96, 5: 192, 8: 384}.items():
        layer(f"encoder.downsamples.{index}.resample.1", width, width, 3, 3)
    layer("encoder.downsamples.5.time_conv", 192, 192, 3, 1, 1)
    layer("encoder.downsamples.8.time_conv", 384, 384, 3, 1, 1)
    layer("conv1", 32, 32, 1, 1, 1)
    layer("conv2", 16, 16, 1, 1, 1)
    ends("decoder", (384, 16), (3, 96))
    widths = {4: (192, 384)} | dict.fromkeys((0, 1, 2, 5, 6), (384, 384))
    widths |= dict.fromkeys((8, 9, 10), (192, 192)) | dict.fromkeys((12, 13, 14), (96, 96))
    for index, (inputs, outputs) in widths.items():
        residual(f"decoder.upsamples.{index}", inputs, outputs)
    for index, width in {3: 384, 7: 384, 11: 192}.items():
        layer(f"decoder.upsamples.{index}.resample.1", width // 2, width, 3, 3)
    layer("decoder.upsamples.3.time_conv", 768, 384, 3, 1, 1)
    layer("decoder.upsamples.7.time_conv", 768, 384, 3, 1, 1)
    return shapes


def test_full_size_parameters_are_those_of_the_released_file():
    with torch.device("meta"):
        vae = Vae(WAN_VAE)
    assert {k: tuple(v.shape) for k, v in vae.state_dict().items()} == full_size_shapes()


def test_full_size_parameters_are_as_many_as_diffusers():
    with torch.device("meta"):
        ours, theirs = Vae(WAN_VAE), diffusers_vae(WAN_VAE)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
    # The released float32 file has 507 609 880 bytes: these and less than 100 kB around them.
    assert 0 < 507_609_880 - 4 * count < 100_000


def test_weights_can_be_given_to_a_network_made_without_storage():
    expected = random_vae(TOY_VAE, torch.float32)
    with torch.device("meta"):
        vae = Vae(TOY_VAE)
    vae.load_state_dict(expected.state_dict(), assign=True)
    frames = random_frames(1, dtype=torch.float32)
    assert torch.equal(vae.encode(frames), expected.encode(frames))


@pytest.mark.parametrize("num_frames", [0, 2, 4, 12])
def test_clip_of_another_length_than_1_plus_4k_is_refused(num_frames):
    with pytest.raises(InvalidRequestError, match=f"frames {num_frames} must be 1 \\+ a multiple"):
        random_vae(TOY_VAE).encode(torch.zeros(1, 3, num_frames, *SIZE))


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(InvalidRequestError, match="width 42 must be a multiple of 8"):
        random_vae(TOY_VAE).encode(torch.zeros(1, 3, 1, 24, 42))


def test_later_chunk_that_is_no_multiple_of_4_is_refused():
    vae = random_vae(TOY_VAE)
    _, caches = vae.encode_chunk(random_frames(1))
    with pytest.raises(InvalidRequestError, match="frames 6 must be a multiple of 4"):
        vae.encode_chunk(random_frames(6), caches)


def test_first_chunk_of_several_frames_is_refused():
    with pytest.raises(InvalidRequestError, match="has 2 frames and must have 1"):
        random_vae(TOY_VAE).decode_chunk(random_latents(2))


def test_missing_and_surplus_caches_are_refused():
    vae = random_vae(TOY_VAE)
    _, caches = vae.decode_chunk(random_latents(1))
    for wrong in (caches[:-1], [*caches, caches[0]], []):
        with pytest.raises(InvalidRequestError, match="caches were given"):
            vae.decode_chunk(random_latents(1), wrong)


def stored(module):
    """A module's own weights, as a checkpoint would hold them."""
    return {
        name: StoredTensor(tuple(p.shape), p.dtype, lambda p=p: p)
        for name, p in module.named_parameters()
    }


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """A VAE, an onnxruntime session for each of its graphs, exported at 16x24 pixels, and their folder."""
    vae = random_vae(FEW_LAYERS, torch.float32)
    folder = tmp_path_factory.mktemp("graphs")
    sessions: dict[str, ort.InferenceSession] = {}
    for network, graphs in export_graphs(vae, 16, 24).items():
        for name, graph in graphs.items():
            path = folder / f"{network}.{name}.onnx"
            write_onnx(graph, path, vae, stored(vae))
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            sessions[f"{network}.{name}"] = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
    return vae, sessions, folder


def run(session: ort.InferenceSession, *tensors: Tensor) -> list[Tensor]:
    names = [value.name for value in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, tensors, strict=True)}
    return [torch.from_numpy(x) for x in session.run(None, feed)]


@pytest.mark.parametrize(
    ("network", "chunks"),
    [
        ("vae_encoder", random_frames(17, (40, 32), torch.float32).split((1, 4, 8, 4), dim=2)),
        ("vae_decoder", random_latents(7, (7, 5), torch.float32).split((1, 1, 3, 2), dim=2)),
    ],
)
def test_chained_graphs_equal_torch_at_another_size(lowered, network, chunks):
    vae, sessions, _ = lowered
    step = vae.encode_chunk if network == "vae_encoder" else vae.decode_chunk
    caches, lowered_caches = None, []
    for index, chunk in enumerate(chunks):
        expected, caches = step(chunk, caches)
        session = sessions[f"{network}.{'next' if index else 'first'}"]
        answer, *lowered_caches = run(session, chunk, *lowered_caches)
        # Sums of up to 27 * 16 products in float32, in another order, through a dozen layers.
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
        for cache, expected_cache in zip(lowered_caches, caches, strict=True):
            torch.testing.assert_close(cache, expected_cache, rtol=1e-4, atol=1e-4)


def test_graphs_name_their_caches_in_order(lowered):
    _, sessions, _ = lowered
    for network, source, result in (
        ("vae_encoder", "frames", "latents"),
        ("vae_decoder", "latents", "frames"),
    ):
        first, later = sessions[f"{network}.first"], sessions[f"{network}.next"]
        caches = [f"cache_{index:02}" for index in range(len(later.get_inputs()) - 1)]
        outputs = [result, *(f"next_{name}" for name in caches)]
        assert [value.name for value in first.get_inputs()] == [source]
        assert [value.name for value in later.get_inputs()] == [source, *caches]
        assert [value.name for value in first.get_outputs()] == outputs
        assert [value.name for value in later.get_outputs()] == outputs


def test_graphs_hold_no_operator_that_tensorrt_refuses(lowered):
    # Sequences aren't known to its parser, nor norms whose axes are computed in the graph; a
    # 384-wide attention head has no kernel.
    refused = {"SplitToSequence", "SequenceAt", "ReduceL2", "Attention"}
    *_, folder = lowered
    paths = list(folder.glob("*.onnx"))
    assert len(paths) == 4
    for path in paths:
        nodes = onnx.load(path, load_external_data=False).graph.node
        assert not refused & {node.op_type for node in nodes}
        assert {node.domain for node in nodes} == {""}  # none of our own
