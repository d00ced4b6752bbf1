# SPDX-License-Identifier: Apache-2.0
"""Plans against published numbers: work and floors of the released networks, sizes of their files."""

from dataclasses import replace

import pytest

from predict2_export.checkpoint.files import read_checkpoint
from predict2_export.gpus import GPUS, find_gpu
from predict2_export.plan import checkpoint_bytes, floor_seconds, host_needs, make_plan
from predict2_export.toy import TRAINED
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import PRESETS, TOY, find_preset

H200 = GPUS["H200"]
# Rate that large matrix products reach on an H200, which the published floors assume.
MATMUL = replace(H200, bf16_flops=790e12, fp8_flops=1400e12)

# Published: TFLOP of linear layers, self-attention, cross-attention and all of a pass, PFLOP of 72
# passes, and their seconds at 790 TFLOP/s.
PUBLISHED = {
    "2b-480p-16fps image": ("13.4", "3.8", "0.6", "17.8", "1.28", "1.63"),
    "14b-480p-16fps image": ("107.8", "12.3", "1.9", "122.0", "8.78", "11.1"),
    "2b-480p-10fps": ("68.2", "98.6", "2.6", "169", "12.2", "15.4"),
    "2b-480p-16fps": ("102.3", "221.9", "3.8", "328", "23.6", "29.9"),
    "2b-720p-10fps": ("185.2", "727.6", "6.7", "920", "66.2", "83.8"),
    "2b-720p-16fps": ("277.8", "1637", "10.0", "1925", "138.6", "175.4"),
    "2b-720p-10fps-sparse": ("185.2", "120.2", "6.7", "312", "22.5", "28.4"),
    "2b-720p-16fps-sparse": ("277.8", "270.5", "10.0", "558", "40.2", "50.9"),
    "14b-480p-10fps": ("547.9", "317", "8.2", "873", "62.9", "79.6"),
    "14b-480p-16fps": ("821.9", "713", "12.1", "1547", "111.4", "141.0"),
    "14b-720p-10fps": ("1488", "2339", "21.7", "3849", "277.1", "350.8"),
    "14b-720p-16fps": ("2232", "5262", "32.3", "7527", "541.9", "686.0"),
    "14b-720p-10fps-sparse": ("1488", "400", "21.7", "1910", "137.5", "174.1"),
    "14b-720p-16fps-sparse": ("2232", "901", "32.3", "3166", "227.9", "288.5"),
}


def denoiser(plan):
    (work,) = [work for work in plan.work if work.by_kind]
    return work


@pytest.mark.parametrize("case", PUBLISHED)
def test_work_and_floors_are_the_published_ones(case):
    name, _, image = case.partition(" ")
    task = "text2image" if image else "video2world"
    work = denoiser(make_plan(find_preset(name), MATMUL, task))
    kinds = work.by_kind
    assert work.passes == 72
    values = (
        *(kinds.linear / 1e12, kinds.self_attention / 1e12, kinds.cross_attention / 1e12),
        *(work.pass_flops / 1e12, work.flops / 1e15, work.bf16_seconds(MATMUL)),
    )
    for value, printed in zip(values, PUBLISHED[case], strict=True):
        digits = len(printed.partition(".")[2])
        # One of the last digit printed: embedding and modulation, 0.02 %, aren't in the sums.
        assert value == pytest.approx(float(printed), abs=10**-digits)


@pytest.mark.parametrize(
    ("name", "seconds"), [("2b-720p-16fps", 99.0), ("14b-720p-16fps-sparse", 162.8)]
)
def test_8_bit_floors_are_the_published_ones(name, seconds):
    work = denoiser(make_plan(find_preset(name), MATMUL, "video2world"))
    assert work.fp8_seconds(MATMUL) == pytest.approx(seconds, abs=0.1)


def test_a_small_pass_takes_as_long_as_reading_its_weights():
    assert floor_seconds(flops=1e12, weight_bytes=4e9, rate=1e15, bandwidth=2e12) == 2e-3
    assert floor_seconds(flops=9e12, weight_bytes=4e9, rate=1e15, bandwidth=2e12) == 9e-3


def test_text2world_makes_a_picture_and_goes_on_from_it():
    plan = make_plan(find_preset("2b-720p-16fps"), H200, "text2world")
    assert [(size.of, size.tokens) for size in plan.sizes] == [("picture", 4080), ("clip", 84480)]
    assert [(work.stage, work.of) for work in plan.work] == [
        ("text_encoder", "prompt"),
        ("text2image_denoiser", "picture"),
        ("vae_decoder", "picture"),
        ("text_encoder", "prompt"),
        ("vae_encoder", "input"),
        ("video2world_denoiser", "clip"),
        ("vae_decoder", "clip"),
    ]
    apart = [
        make_plan(find_preset("2b-720p-16fps"), H200, task)
        for task in ("text2image", "video2world")
    ]
    assert plan.flops == sum(part.flops for part in apart)
    # Engines that both use are on the GPU once.
    assert plan.memory.bf16 < sum(part.memory.bf16 for part in apart)


def test_distilled_pictures_take_four_unguided_passes():
    plain = make_plan(find_preset("0.6b"), H200, "text2image")
    distilled = make_plan(find_preset("0.6b-distilled"), H200, "text2image")
    assert (denoiser(plain).passes, denoiser(distilled).passes) == (72, 4)
    assert denoiser(distilled).step_flops == denoiser(plain).pass_flops


def test_a_vae_that_only_its_file_knows_is_left_out_and_named():
    wan, fast = (make_plan(find_preset(name), H200, "text2image") for name in ("0.6b", "0.6b-fast"))
    assert wan.uncounted == ()
    assert fast.uncounted == ("vae_decoder",)
    assert [work for work in wan.work if work.stage != "vae_decoder"] == list(fast.work)
    assert fast.host.checkpoints < wan.host.checkpoints
    assert fast.memory.bf16 < wan.memory.bf16


def test_batches_cost_work_and_working_memory_but_no_weights():
    preset = find_preset("2b-480p-16fps")
    one, three = (make_plan(preset, H200, "video2world", batch=batch) for batch in (1, 3))
    assert three.flops == 3 * one.flops
    assert three.memory.activations == 3 * one.memory.activations
    assert three.memory.bf16_weights == one.memory.bf16_weights


def test_a_shorter_clip_of_another_shape_is_planned_as_asked():
    preset = find_preset("2b-480p-16fps")
    plan = make_plan(preset, H200, "video2world", aspect_ratio="1:1", num_frames=5)
    assert plan.sizes[0].grid == (2, 30, 30)


def test_the_14b_networks_fit_an_h100_apart_but_not_together():
    preset, h100 = find_preset("14b-720p-16fps"), GPUS["H100"]
    alone, both = (make_plan(preset, h100, task) for task in ("video2world", "text2world"))
    assert alone.memory.bf16 <= h100.memory_bytes < both.memory.bf16
    assert both.memory.fp8 < h100.memory_bytes


def test_downloads_are_as_large_as_the_published_files():
    # T5-11B 45.2 GB, each 2B network 3.913 GB, the VAE 507 609 880 bytes
    preset = find_preset("2b-720p-16fps")
    expected = 45.229e9 + 2 * 3.913e9 + 0.5076e9
    assert checkpoint_bytes(preset) == pytest.approx(expected, rel=1e-4)
    # the encoder alone in bf16: 9.73 GB
    small = expected - 45.229e9 + 9.730e9
    assert checkpoint_bytes(preset, small_text_encoder=True) == pytest.approx(small, rel=1e-4)
    # which isn't published beside the 0.6B network
    alone = find_preset("0.6b")
    assert checkpoint_bytes(alone, small_text_encoder=True) == checkpoint_bytes(alone)


def test_the_toys_checkpoint_is_as_large_as_its_files():
    paths = (TOY.text_encoder_path, TOY.vae_path, TOY.text2image_path, TOY.video2world_path)
    tensors = [tensor for path in paths for tensor in read_checkpoint(TRAINED / path).values()]
    assert checkpoint_bytes(TOY) == sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_needs(name):
    host = host_needs(PRESETS[name])
    assert host.engines_fp8 < host.engines_bf16 == host.onnx_bf16 < host.onnx_fp32
    assert host.temporary <= host.onnx_fp32


def test_dense_rates_are_half_of_those_the_datasheets_print_with_sparsity():
    printed = {  # bf16 and fp8 TFLOP/s with sparsity, one unit of the last digit apart
        "H200": (1979, 3958), "H100": (1979, 3958), "H100-PCIe": (1513, 3026),
        "B200": (4500, 9000), "L40S": (733, 1466),
    }  # fmt: skip
    assert printed.keys() == GPUS.keys()
    for name, (bf16, fp8) in printed.items():
        # The L40S's own sheet has 362.05 beside 733.
        assert GPUS[name].bf16_flops / 1e12 == pytest.approx(bf16 / 2, abs=5)
        assert GPUS[name].fp8_flops / 1e12 == pytest.approx(fp8 / 2, abs=1)


def test_gpus_are_found_in_any_case_and_others_refused_by_name():
    assert find_gpu("h100-pcie") is GPUS["H100-PCIe"]
    with pytest.raises(
        InvalidRequestError, match="gpu 'H300' is unknown; choose one of H200, H100"
    ):
        find_gpu("H300")


@pytest.mark.parametrize(
    ("name", "task", "options", "message"),
    [
        ("0.6b", "video2world", {}, "preset 0.6b has no video2world network"),
        ("2b-480p-16fps", "video2world", {"num_frames": 97}, "97 is more than"),
        ("2b-480p-16fps", "video2world", {"num_frames": 12}, "must be 1 \\+ 4k"),
        ("2b-480p-16fps", "video2world", {"aspect_ratio": "2:1"}, "aspect_ratio '2:1' is unknown"),
        ("2b-480p-16fps", "video2world", {"batch": 0}, "batch 0 must be 1 or more"),
        ("2b-720p-16fps-sparse", "video2world", {"aspect_ratio": "1:1"}, "'1:1' is unknown"),
    ],
)
def test_what_isnt_served_is_refused(name, task, options, message):
    with pytest.raises(InvalidRequestError, match=message):
        make_plan(find_preset(name), H200, task, **options)
