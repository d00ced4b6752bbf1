# SPDX-License-Identifier: Apache-2.0
"""What is measured, and on what: against hooks that look at the same generations."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from predict2_export.fp8.calibrate import Measurement, calibrate, read_prompts
from predict2_export.fp8.layers import candidates
from predict2_export.fp8.observe import input_amax
from predict2_export.fp8.trajectories import (
    Texts,
    clip_generations,
    denoise,
    picture_generations,
    run_clips,
    run_pictures,
)
from predict2_export.toyworld.sampling import generate
from predict2_export.toyworld.scene import vocabulary
from predict2_runtime.schedule import DISTILLED_SIGMAS, flow_time, solver_steps
from predict2_spec.errors import CheckpointError, InvalidRequestError, Predict2Error
from predict2_spec.networks import DIT_TOY_VIDEO2WORLD
from predict2_spec.presets import PRESETS, TOY
from predict2_spec.video import TOY_SIZES

TEXTS = Texts([torch.full((32, 64), float(i)) for i in (1, 2)], torch.full((32, 64), 9.0))


class Recorder(nn.Module):
    """In a denoiser's place; keeps what it is called with."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.calls = []

    def forward(self, *inputs):
        self.calls.append(inputs)
        return torch.zeros_like(inputs[0])


def test_pictures_run_the_whole_schedule_with_both_branches():
    recorder, done = Recorder(), []
    run_pictures(list(picture_generations(TOY, TEXTS, 5)), recorder, lambda: done.append(1))
    sigmas = [step.sigma for step in solver_steps(5)]
    assert len(done) == 2
    assert len(recorder.calls) == 2 * len(sigmas) == 12
    times = [call[1].flatten().tolist() for call in recorder.calls[:6]]
    assert times == [pytest.approx([flow_time(sigma)] * 2) for sigma in sigmas]
    first, second = recorder.calls[0], recorder.calls[6]
    assert [float(text.mean()) for text in first[2]] == [1, 0]  # the default: no negative prompt
    assert [float(text.mean()) for text in second[2]] == [2, 9]
    widths = [call[0].shape[-1] * 8 for call in (first, second)]
    assert widths == [width for width, _ in list(TOY_SIZES.values())[:2]]


def test_distilled_networks_run_their_own_few_steps_without_guidance():
    recorder = Recorder()
    generations = list(picture_generations(PRESETS["0.6b-distilled"], TEXTS, 35))
    run_pictures(generations[:1], recorder, lambda: None)
    assert [call[0].shape[0] for call in recorder.calls] == [1] * 4
    times = [float(call[1]) for call in recorder.calls]
    assert times == pytest.approx([flow_time(sigma) for sigma in DISTILLED_SIGMAS])
    # Noise is put back after every step but the last: without a flow the state is x0 and a normal times sigma.
    states = [float(call[0].std()) for call in recorder.calls]
    assert states[0] == pytest.approx(80 * (1 - flow_time(80)), rel=0.02)
    assert all(state > 0.3 for state in states)


def test_networks_of_bfloat16_are_run_in_their_type(toy_recipes, how, calibrations, monkeypatch):
    """As on a GPU; what is measured differs by bfloat16's rounding alone."""

    def loaded(recipe, device):
        return recipe.module(recipe.weights()).bfloat16()

    monkeypatch.setattr("predict2_export.fp8.calibrate._loaded", loaded)
    for network, calibration in calibrations.items():
        rounded = calibrate(TOY, toy_recipes, network, how, lambda line: None)
        assert rounded.amax == pytest.approx(calibration.amax, rel=0.1)


def test_clips_go_on_from_one_latent_frame_and_from_two():
    recorder = Recorder()
    ((_, clip), *_) = clip_generations(TOY, TEXTS, 2)
    picture = torch.full((16, 1, clip.shape.height, clip.shape.width), 3.0)
    run_clips([(clip, picture)], recorder, lambda: None)
    masks = [call[3][0, 0, :, 0, 0].tolist() for call in recorder.calls]
    assert masks == [[1, 0, 0, 0]] * 3 + [[1, 1, 0, 0]] * 3
    assert all((call[0][:, :, 0] == 3).all() for call in recorder.calls)  # the picture, clean
    assert [call[2].shape[0] for call in recorder.calls] == [2] * 6


def test_the_amax_is_that_of_the_same_generations(toy_recipes, calibrations, how, monkeypatch):
    """Independently: hooks on the same network, which nothing was put into."""

    def by_hooks(network, layers, run):
        found = dict.fromkeys(layers, 0.0)

        def look(name):
            def hook(module, inputs):
                found[name] = max(found[name], float(inputs[0].abs().max()))

            return hook

        for name in layers:
            network.get_submodule(name).register_forward_pre_hook(look(name))
        run(network)
        return found

    monkeypatch.setattr("predict2_export.fp8.calibrate.input_amax", by_hooks)
    for network, calibration in calibrations.items():
        expected = calibrate(TOY, toy_recipes, network, how, lambda line: None)
        assert calibration.amax == pytest.approx(expected.amax, rel=1e-6)
        assert replace(expected, amax=calibration.amax) == calibration
        assert min(calibration.amax.values()) > 0.5


def test_every_candidate_was_measured_and_nothing_else(calibrations):
    assert set(calibrations["video2world_denoiser"].amax) == set(candidates(DIT_TOY_VIDEO2WORLD))


def test_only_the_named_layers_are_observed():
    torch.manual_seed(0)
    network = nn.ModuleDict({"proj_out": nn.Linear(4, 4), "output": nn.Linear(4, 4)})
    x = torch.tensor([[1.0, -7.0, 2.0, 3.0]])
    # By this name the quantizer's own configurations would leave it out.
    amax = input_amax(network, ["proj_out"], lambda net: net["output"](net["proj_out"](x)))
    assert amax == {"proj_out": 7.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused(value):
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    with pytest.raises(CheckpointError, match=r"can't measure this network \(detected (nan|inf) values"):  # fmt: skip
        input_amax(network, ["0"], lambda net: net(torch.full((1, 2), value)))


def test_a_layer_that_was_never_called_is_named():
    network = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(2)))
    with pytest.raises(Predict2Error, match="observed 1 layers instead of 2, they differ in 1"):
        input_amax(network, ["0", "1"], lambda net: net[0](torch.ones(1, 2)))


def test_without_the_quantizer_it_says_what_to_install(toy_recipes, how, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    with pytest.raises(
        Predict2Error, match=r"pip install 'cosmos-predict2-triton\[fp8\]', or give the"
    ):
        calibrate(TOY, toy_recipes, "text2image_denoiser", how, lambda line: None)


def test_prompts_ship_for_the_toy_and_for_all_others(tmp_path):
    toy, others = read_prompts(TOY), read_prompts(PRESETS["14b-720p-16fps"])
    assert {word for prompt in toy for word in prompt.split()} <= set(vocabulary())
    assert len(toy) >= 12
    assert len(others) >= 12
    assert read_prompts(PRESETS["2b-480p-10fps"]) == others
    path = tmp_path / "own.txt"
    path.write_text("  one prompt \n\nanother\n")
    assert read_prompts(TOY, path) == ("one prompt", "another")
    path.write_text("\n")
    with pytest.raises(InvalidRequestError, match=r"own\.txt has no prompts; write 1 to 1024"):
        read_prompts(TOY, path)
    path.write_text("a red ball\n" * 1025)
    with pytest.raises(InvalidRequestError, match=r"own\.txt has 1025 prompts; write 1 to 1024"):
        read_prompts(TOY, path)
    path.write_bytes(b"a red \xff\xfe")
    with pytest.raises(InvalidRequestError, match=r"own\.txt isn't text in UTF-8 .*at byte 6"):
        read_prompts(TOY, path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_says_so_before_it_measures(toy_recipes, how):
    with pytest.raises(InvalidRequestError, match="torch finds no GPU here to measure on"):
        calibrate(TOY, toy_recipes, "text2image_denoiser", replace(how, device="cuda"), print)


def test_a_margin_that_makes_no_sense_is_refused():
    with pytest.raises(InvalidRequestError, match=r"margin -0\.5 must be between 0 and 1"):
        Measurement(("a red ball",), margin=-0.5)


def test_a_generation_is_that_of_the_toys_own_sampler(toy_recipes):
    (recipe,) = (r for r in toy_recipes if r.network == "video2world_denoiser")
    network = recipe.module(recipe.weights())
    (_, clip), _ = clip_generations(TOY, TEXTS, 4)
    picture = torch.randn(16, 1, clip.shape.height, clip.shape.width)
    embeds = (TEXTS.prompts[0][None], TEXTS.negative)
    (expected,) = generate(
        network, embeds, clip.shape, [0], clip.guidance.scale, picture[None], num_steps=4
    )
    actual = denoise(network, clip, picture)
    # float32, sums in another order, through five passes
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)
