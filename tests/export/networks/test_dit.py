# SPDX-License-Identifier: Apache-2.0
"""The denoiser against diffusers' network and against its formulas."""

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers import transformer_cosmos

from predict2_export.checkpoint.fit import load_strict
from predict2_export.checkpoint.names import dit_state_dict
from predict2_export.networks.dit import Dit, RotaryTables, Sinusoid, rotary_angles
from predict2_export.networks.fused import DOMAIN
from predict2_export.networks.onnx_functions import add_functions
from predict2_spec import networks as nets

torch.set_num_threads(2)

# Measured: at most 5e-6 on outputs of about 1.7, from sums taken in another order. A rotary ratio
# off by a tenth shows as 4e-4, diffusers' own epsilon as 0.3.
FP32 = {"rtol": 0, "atol": 5e-5}

TEXT_TOKENS = 7


def small(spec, heads=2, **changes):
    """Two blocks of a member of the family: its head width and rotary settings, fp32 angles."""
    width = heads * spec.head_dim
    return replace(
        spec, width=width, num_heads=heads, num_blocks=2, rope_dtype="float32", **changes
    )


TOY_IMAGE = small(nets.DIT_TOY_TEXT2IMAGE)
TOY_VIDEO = small(nets.DIT_TOY_VIDEO2WORLD)
CASES = {  # spec, latent (T, H, W), conditioning latent frames
    "toy-image": (TOY_IMAGE, (1, 6, 10), 0),
    "toy-video-1": (TOY_VIDEO, (3, 6, 10), 1),
    "toy-video-2": (TOY_VIDEO, (4, 10, 6), 2),
    "0.6b-image": (small(nets.DIT_0_6B_TEXT2IMAGE), (1, 14, 22), 0),
    "2b-image": (small(nets.DIT_2B_TEXT2IMAGE), (1, 22, 14), 0),
    "2b-video-1": (small(nets.DIT_2B_VIDEO2WORLD), (3, 6, 10), 1),
    "2b-video-2": (small(nets.DIT_2B_VIDEO2WORLD), (5, 14, 6), 2),
    "14b-video-1": (small(nets.DIT_14B_VIDEO2WORLD), (5, 6, 10), 1),
    "14b-video-2": (small(nets.DIT_14B_VIDEO2WORLD), (3, 4, 14), 2),
}


@pytest.fixture
def torchvision_free(monkeypatch):
    """Diffusers resizes the padding mask through torchvision, which has no CPU wheel to depend on."""
    functional = SimpleNamespace(
        resize=lambda mask, size, interpolation: F.interpolate(mask, size=size, mode=interpolation)
    )
    transforms = SimpleNamespace(
        functional=functional, InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)


def randomize(module, seed=0):
    """Weights that keep activations near 1, norms included, so that no layer hides behind another."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        one_dim = parameter.ndim == 1
        parameter.data = 1 + 0.3 * noise if one_dim else noise / math.sqrt(parameter.shape[1])
        if any(part in name for part in ("to_q", "to_k", "q_proj", "k_proj")):
            parameter.data /= 256  # so small that the norms' epsilon shows
    return module.eval()


def make_inputs(spec, size, conditioning, batch=2, dtype=torch.float32):
    """Latents, a time for every frame, a text with zeroed padding, and the mask of video networks."""
    generator = torch.Generator().manual_seed(1)
    frames = size[0]
    latents = torch.randn(batch, 16, *size, generator=generator)
    timestep = torch.rand(batch, 1, generator=generator).repeat(1, frames)
    timestep[:, :conditioning] = 1e-4
    text = torch.randn(batch, TEXT_TOKENS, spec.text_width, generator=generator)
    text[0, 3:] = 0
    inputs = [latents, timestep, text]
    if spec.condition_mask:
        mask = torch.zeros(batch, 1, *size)
        mask[:, :, :conditioning] = 1
        inputs.append(mask)
    return [tensor.to(dtype) for tensor in inputs]


def diffusers_velocity(module, latents, timestep, text, mask=None):
    # One time a picture, one a frame of a clip; fps=24 leaves the frames' positions unscaled.
    return module(
        latents,
        timestep[:, 0] if mask is None else timestep[:, None, :, None, None],
        text,
        fps=None if mask is None else 24,
        condition_mask=mask,
        padding_mask=torch.zeros(1, 1, 8 * latents.shape[3], 8 * latents.shape[4]),
        return_dict=False,
    )[0]


@pytest.mark.usefixtures("torchvision_free")
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_velocity_equals_diffusers(case, diffusers_dit):
    spec, size, conditioning = CASES[case]
    reference = randomize(diffusers_dit(spec))
    dit = Dit(spec).eval()
    load_strict(dit, dit_state_dict(reference.state_dict()), "diffusers' weights")
    inputs = make_inputs(spec, size, conditioning)
    velocity = dit(*inputs)
    assert velocity.shape == inputs[0].shape
    assert velocity.std() > 0.3  # else the tolerance would say nothing
    torch.testing.assert_close(velocity, diffusers_velocity(reference, *inputs), **FP32)


@pytest.mark.usefixtures("torchvision_free")
@torch.no_grad()
def test_diffusers_computes_the_same_from_our_weights(diffusers_dit):
    dit, reference = randomize(Dit(TOY_VIDEO)), diffusers_dit(TOY_VIDEO).eval()
    theirs = dit_state_dict({key: key for key in reference.state_dict()})  # ours -> theirs
    reference.load_state_dict({theirs[key]: value for key, value in dit.state_dict().items()})
    inputs = make_inputs(TOY_VIDEO, (3, 6, 10), 1)
    torch.testing.assert_close(dit(*inputs), diffusers_velocity(reference, *inputs), **FP32)


@pytest.mark.usefixtures("torchvision_free")
@pytest.mark.parametrize("size", [(3, 12, 20), (2, 10, 14)], ids=["even", "uneven"])
@torch.no_grad()
def test_velocity_of_a_sparse_network_equals_diffusers_behind_masks(
    size, neighborhood_mask, diffusers_dit
):
    kinds = (nets.DILATED, None, nets.PATCHES_3)
    spec = replace(TOY_VIDEO, num_blocks=3, neighborhoods=kinds)
    reference = randomize(diffusers_dit(spec))
    sparse, dense = Dit(spec).eval(), Dit(replace(spec, neighborhoods=())).eval()
    for dit in (sparse, dense):  # the same weights serve both
        load_strict(dit, dit_state_dict(reference.state_dict()), "diffusers' weights")
    grid = (size[0], size[1] // 2, size[2] // 2)
    for block, kind in zip(reference.transformer_blocks, kinds, strict=True):
        if kind is not None:
            mask = neighborhood_mask(grid, kind.on(grid))
            block.attn1.register_forward_pre_hook(
                lambda _, args, kwargs, mask=mask: (args, kwargs | {"attention_mask": mask}),
                with_kwargs=True,
            )
    inputs = make_inputs(spec, size, 1)
    velocity = sparse(*inputs)
    assert (velocity - dense(*inputs)).abs().max() > 100 * FP32["atol"]  # the masks matter
    torch.testing.assert_close(velocity, diffusers_velocity(reference, *inputs), **FP32)


@torch.no_grad()
def test_a_sparse_network_sees_all_of_a_single_frame():
    spec = replace(TOY_VIDEO, neighborhoods=2 * (nets.PATCHES_3,))
    sparse, dense = randomize(Dit(spec)), randomize(Dit(TOY_VIDEO))
    inputs = make_inputs(TOY_VIDEO, (1, 12, 20), 1)
    assert torch.equal(sparse(*inputs), dense(*inputs))


@torch.no_grad()
def test_velocity_depends_on_text_time_and_mask():
    dit = randomize(Dit(TOY_VIDEO))
    inputs = make_inputs(TOY_VIDEO, (3, 6, 10), 1)
    velocity = dit(*inputs)
    for index in range(1, 4):
        changed = [*inputs[:index], 0.5 * inputs[index], *inputs[index + 1 :]]
        assert (dit(*changed) - velocity).abs().max() > 1e-2


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 2e-5), (torch.bfloat16, 0.12)])
@torch.no_grad()
def test_other_dtypes_agree_with_float32(dtype, limit):
    # fp64: fp32's own rounding. bf16: 2^-8 a value, grown through two blocks (measured 0.04).
    dit = randomize(Dit(TOY_VIDEO))
    expected = dit(*make_inputs(TOY_VIDEO, (3, 6, 10), 1))
    velocity = dit.to(dtype)(*make_inputs(TOY_VIDEO, (3, 6, 10), 1, dtype=dtype))
    assert velocity.dtype == dtype
    assert (velocity.float() - expected).abs().max() < limit * expected.std()


@torch.no_grad()
def test_time_is_rounded_to_the_networks_dtype():
    dit = randomize(Dit(TOY_VIDEO)).to(torch.bfloat16)
    latents, timestep, *rest = make_inputs(TOY_VIDEO, (3, 6, 10), 1, dtype=torch.bfloat16)
    unrounded = timestep.float() * (1 + 2**-10)  # less than half a bf16 step away
    assert torch.equal(dit(latents, unrounded, *rest), dit(latents, timestep, *rest))


def test_time_embedding_is_cosines_then_sines():
    times, half = (0.0, 1e-4, 0.3, 0.98828125, 1.0), 64
    frequencies = [10000 ** (-i / half) for i in range(half)]
    expected = [
        [f(t * frequency) for f in (math.cos, math.sin) for frequency in frequencies] for t in times
    ]
    embedding = Sinusoid(2 * half)(torch.tensor([times], dtype=torch.float64))
    # a few float64 roundings of values up to 1
    torch.testing.assert_close(
        embedding, torch.tensor([expected], dtype=torch.float64), rtol=0, atol=2e-15
    )


def test_time_embedding_of_bfloat16_is_formed_in_float32():
    times = torch.tensor([[0.98828125, 0.0020, 1e-4]], dtype=torch.bfloat16)
    embedding = Sinusoid(128)(times)
    exact = Sinusoid(128)(times.double())
    assert embedding.dtype == torch.bfloat16
    # one rounding to bf16, half a step of 2^-8 relative, and none before it
    torch.testing.assert_close(embedding.double(), exact, rtol=2**-8 * 1.01, atol=1e-7)


def bfloat16(values):
    """Round numbers >= 0 to the nearest bf16, ties to even, by the bits."""
    bits = np.asarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & ~0xFFFF
    return rounded.astype(np.int32).view(np.float32)


def bfloat16_angles(positions, channels, scale):
    """The original's table: theta, exponents, powers, frequencies and angles, each rounded."""
    theta = bfloat16(10000 * scale ** (channels / (channels - 2))).astype(np.float64)
    exponents = bfloat16(np.arange(0, channels, 2) / channels).astype(np.float64)
    frequencies = bfloat16(1 / bfloat16(theta**exponents))
    return bfloat16(np.arange(positions)[:, None] * frequencies)


# Largest |bf16 angle - exact angle| along t, h and w over the largest 16:9 grid, in radians.
ANGLE_ERRORS = {
    "2b-video": (nets.DIT_2B_VIDEO2WORLD, (24, 44, 80), (0.065, 0.093, 0.187)),
    "14b-video": (nets.DIT_14B_VIDEO2WORLD, (24, 44, 80), (0.036, 0.087, 0.285)),
    "2b-image": (nets.DIT_2B_TEXT2IMAGE, (1, 48, 85), (0, 0.070, 0.141)),
    "14b-image": (nets.DIT_14B_TEXT2IMAGE, (1, 48, 85), (0, 0.070, 0.141)),
    "0.6b-image": (nets.DIT_0_6B_TEXT2IMAGE, (1, 48, 85), (0, 0.084, 0.167)),
}


@pytest.mark.parametrize("case", ANGLE_ERRORS)
def test_bfloat16_angles_round_as_the_original_does(case):
    spec, grid, errors = ANGLE_ERRORS[case]
    for axis, error in enumerate(errors):
        positions, channels, scale = grid[axis], spec.rope_dims[axis], spec.rope_scale[axis]
        angles = rotary_angles(positions, channels, scale, torch.bfloat16).numpy()
        np.testing.assert_array_equal(angles, bfloat16_angles(positions, channels, scale))
        theta = 10000 * scale ** (channels / (channels - 2))
        exact = np.arange(positions)[:, None] * theta ** (-np.arange(0, channels, 2) / channels)
        assert np.abs(angles - exact).max() == pytest.approx(error, abs=5.1e-4)  # printed digits


@pytest.mark.parametrize("case", ANGLE_ERRORS)
def test_rotary_tables_cover_the_grid_and_follow_the_specs_dtype(case):
    spec = ANGLE_ERRORS[case][0]
    tables = RotaryTables(spec)
    for axis, name in enumerate(("frames", "rows", "columns")):
        angles = bfloat16_angles(spec.max_grid[axis], spec.rope_dims[axis], spec.rope_scale[axis])
        expected = np.stack([np.cos(angles), np.sin(angles)])
        # one float32 rounding of values up to 1, in two libraries' cosines
        np.testing.assert_allclose(getattr(tables, name).numpy(), expected, rtol=0, atol=2e-7)


def test_a_cast_of_the_network_leaves_the_rotary_tables_alone():
    dit = Dit(TOY_VIDEO)
    before = {name: table.clone() for name, table in dit.named_buffers()}
    dit.to(torch.bfloat16)
    assert {parameter.dtype for parameter in dit.parameters()} == {torch.bfloat16}
    for name, table in dit.named_buffers():
        assert table.dtype == torch.float32
        assert torch.equal(table, before[name])


def test_tables_are_no_part_of_the_checkpoint():
    assert not [key for key in Dit(TOY_VIDEO).state_dict() if "pos_embedder" in key]


PARAMETERS = {
    "0.6b-image": (nets.DIT_0_6B_TEXT2IMAGE, 597_536_000),
    "2b-image": (nets.DIT_2B_TEXT2IMAGE, 1_956_405_248),
    "2b-video": (nets.DIT_2B_VIDEO2WORLD, 1_956_413_440),
    "14b-image": (nets.DIT_14B_TEXT2IMAGE, 14_265_265_152),
    "14b-video": (nets.DIT_14B_VIDEO2WORLD, 14_265_285_632),
    "2b-sparse": (nets.DIT_2B_VIDEO2WORLD_SPARSE, 1_956_413_440),
    "14b-sparse": (nets.DIT_14B_VIDEO2WORLD_SPARSE, 14_265_285_632),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_are_as_many_as_released(case):
    spec, count = PARAMETERS[case]
    with torch.device("meta"):
        dit = Dit(spec)
    assert sum(parameter.numel() for parameter in dit.parameters()) == count


@torch.no_grad()
def test_onnx_graph_serves_any_batch_frames_and_size(tmp_path):
    spec = replace(TOY_VIDEO, num_blocks=1)
    dit = randomize(Dit(spec))
    batch, frames, tokens = (torch.export.Dim(name) for name in ("batch", "frames", "tokens"))
    height, width = (2 * torch.export.Dim(name, max=spec.max_grid[1]) for name in "hw")
    clip = {0: batch, 2: frames, 3: height, 4: width}
    program = torch.onnx.export(
        dit,
        tuple(make_inputs(spec, (3, 6, 10), 1)),
        dynamo=True,
        opset_version=23,
        dynamic_shapes=(clip, {0: batch, 1: frames}, {0: batch, 1: tokens}, clip),
        verbose=False,
    )
    add_functions(program.model, ir.DataType.FLOAT)
    operators = Counter(node.op_type for node in program.model.graph if node.domain == DOMAIN)
    assert operators == {
        "Predict2Modulate": 1,
        "Predict2GatedModulate": 3,
        "Predict2QkNormRope": 1,
        "Predict2QkNorm": 1,
        "Predict2Attention": 2,
    }
    program.save(tmp_path / "dit.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "dit.onnx")
    for batch_size, size in ((2, (3, 6, 10)), (1, (1, 14, 4)), (3, (5, 2, 2))):
        inputs = make_inputs(spec, size, 1, batch_size)
        feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
        (velocity,) = session.run(None, feeds)
        torch.testing.assert_close(torch.from_numpy(velocity), dit(*inputs), **FP32)
