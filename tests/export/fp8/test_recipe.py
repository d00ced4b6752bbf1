# SPDX-License-Identifier: Apache-2.0
"""The toy's denoiser at the level fp8, from measurement to a served engine."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from predict2_export.build import build
from predict2_export.comparison import Choices, compare
from predict2_export.fp8.layers import DEFAULT_LAYERS, Fp8Layers
from predict2_export.fp8.recipe import FP8, Fp8Choice, fp8_recipe, fp8_recipes, installed_recipe
from predict2_export.installation import recipe_key
from predict2_export.networks.fp8 import Fp8Linear
from predict2_export.recipes import recipes
from predict2_export.toy import TRAINED
from predict2_export.toyworld.checkpoint import load_networks
from predict2_export.toyworld.drift import drift
from predict2_export.toyworld.quality import judge_text2image
from predict2_export.verify import answer, distance, verify
from predict2_runtime.engines import open_engine, read_manifest
from predict2_runtime.repository import write_preset
from predict2_runtime.stages.denoiser import Denoiser
from predict2_spec.errors import CheckpointError, InvalidRequestError, VerificationError
from predict2_spec.networks import DIT_TOY_TEXT2IMAGE
from predict2_spec.presets import PRESETS, TOY

TEMPLATES = Path(__file__).parents[3] / "model_repository"
STAGE = "text2image_denoiser"


@pytest.fixture(scope="module")
def exact(toy_recipes):
    return next(r for r in toy_recipes if r.network == STAGE)


@pytest.fixture(scope="module")
def recipe(exact, calibrations):
    return fp8_recipe(exact, calibrations[STAGE], DEFAULT_LAYERS, "a.json")


@pytest.fixture(scope="module")
def choice(calibrations, how, tmp_path_factory):
    path = tmp_path_factory.mktemp("calibrations") / "text2image.json"
    path.write_text(calibrations[STAGE].to_json())
    return Fp8Choice(how, calibrations=(path,))


@pytest.fixture(scope="module")
def repository(choice, tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "toy"
    build(TOY, TRAINED, TEMPLATES, output, lambda line: None, only=STAGE, fp8=choice)
    return output


def test_the_module_has_fp8_in_the_allowed_layers_alone(recipe):
    module = recipe.module(recipe.weights())
    found = {name for name, part in module.named_modules() if isinstance(part, Fp8Linear)}
    assert found == set(DEFAULT_LAYERS.names(DIT_TOY_TEXT2IMAGE))
    assert len(found) == 10 * 4


def test_the_module_is_near_the_exact_one_and_not_the_same(recipe, exact):
    pair = [r.graphs(r.module(r.weights()))["main"] for r in (exact, recipe)]
    cosine, _ = distance(answer(pair[0]).outputs, answer(pair[1]).outputs)
    assert 0.99 < cosine < 0.99999


def test_an_engine_says_that_it_is_fp8_and_how_well_it_agrees(repository):
    manifest = read_manifest(repository / STAGE / "1")
    assert (manifest.network, manifest.precision) == (STAGE, "fp8")
    assert manifest.rebuild_command.endswith(f"build --preset toy --only {STAGE} --level fp8")
    result = manifest.verification["main"]
    assert (result.min_cosine, result.max_error_limit) == (FP8.min_cosine, FP8.max_error)
    assert result.cosine >= result.min_cosine


def test_every_layer_in_fp8_has_its_roundings_in_the_graph(repository):
    model = onnx.load(str(repository / STAGE / "1" / "main.onnx"), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    layers = DEFAULT_LAYERS.names(DIT_TOY_TEXT2IMAGE)
    assert kinds.count("QuantizeLinear") == len(layers)
    assert kinds.count("DequantizeLinear") == 2 * len(layers)
    codes = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT8E4M3FN}  # fmt: skip
    assert codes == {f"{name}.weight" for name in layers}


def test_the_stage_takes_a_solver_step_as_the_module_would(repository, recipe):
    stage = Denoiser.open(repository / STAGE / "1", TOY, "text2image")
    generator = np.random.default_rng(0)
    latents = generator.normal(0, 80, (16, 1, 6, 10)).astype(np.float32)
    inputs = {
        "latents": latents,
        "previous_x0": np.zeros_like(latents),
        "step": np.array([0]),
        "num_steps": np.array([35]),
        "guidance": np.array([4.0], np.float32),
        "prompt_embeds": generator.normal(size=(32, 64)).astype(np.float32),
    }
    module = recipe.module(recipe.weights())

    def velocity(arrays):
        tensors = [torch.from_numpy(np.asarray(array)) for array in arrays.values()]
        with torch.no_grad():
            return {"velocity": module(*tensors).numpy()}

    expected = replace(stage, engine=velocity)(inputs)["x0"]
    cosine, _ = distance({"x0": expected}, {"x0": stage(inputs)["x0"]})
    assert cosine >= FP8.min_cosine


def test_a_second_build_keeps_the_engine_and_another_choice_makes_another(
    repository, choice, tmp_path, exact, calibrations
):
    served, lines = tmp_path / "toy", []
    shutil.copytree(repository, served)
    build(TOY, TRAINED, TEMPLATES, served, lines.append, only=STAGE, fp8=choice)
    assert any("already built" in line for line in lines)
    calibration = calibrations[STAGE]
    made = [
        exact,
        fp8_recipe(exact, calibration, DEFAULT_LAYERS, ""),
        fp8_recipe(exact, calibration, Fp8Layers(patterns=("mlp.*",)), ""),
        fp8_recipe(exact, replace(calibration, margin=0.5), DEFAULT_LAYERS, ""),
    ]
    assert len({recipe_key(each, "sha", {}) for each in made}) == 4


def test_the_wrong_scale_in_one_layer_is_found(repository, recipe):
    weights = recipe.weights()
    right = weights["blocks.2.mlp.layer1.weight_scale"]
    wrong = weights | {
        "blocks.2.mlp.layer1.weight_scale": replace(right, load=lambda: 2 * right.load())
    }
    engine = open_engine(repository / STAGE / "1", STAGE).graphs["main"]
    verify("right", answer(recipe.graphs(recipe.module(weights))["main"]), engine, FP8)
    with pytest.raises(VerificationError, match="cosine with the torch module"):
        verify("wrong", answer(recipe.graphs(recipe.module(wrong))["main"]), engine, FP8)


def test_a_measurement_is_kept_and_used_again(toy_recipes, how, tmp_path):
    choice, lines = Fp8Choice(how, as_asked=True), []
    make = (TOY, toy_recipes, choice, tmp_path / "served", lines.append)
    first = fp8_recipes(*make, only=STAGE)
    assert any("measured" in line for line in lines)
    assert [r.precision for r in first if r.network == STAGE] == ["fp8"]
    assert {r.precision for r in first if r.network != STAGE} == {"fp32"}
    lines.clear()
    again = fp8_recipes(*make, only=STAGE)
    assert not lines
    assert [r.choices for r in again] == [r.choices for r in first]
    path = tmp_path / "served" / f"{STAGE}.calibration.json"
    path.write_text(path.read_text().replace('"margin": 0.1', '"margin": 0.2'))
    fp8_recipes(*make, only=STAGE)
    assert any("measured" in line for line in lines)  # what was asked for has another margin
    lines.clear()
    path.write_text(path.read_text().replace('"margin": 0.1', '"margin": 0.2'))
    fp8_recipes(TOY, toy_recipes, replace(choice, as_asked=False), *make[3:], only=STAGE)
    assert not lines  # nobody asked for another
    for damage in (
        "{",
        path.read_text().replace('"blocks.1.mlp.layer1": ', '"blocks.1.mlp.layer1": -'),
    ):
        path.write_text(damage)
        fp8_recipes(*make, only=STAGE)
        assert any("measured" in line for line in lines)
        lines.clear()
    path.write_text("{")
    fp8_recipes(*make, only=STAGE)
    assert any("measured" in line for line in lines)


def test_an_engine_can_be_made_again_from_what_lies_beside_it(repository, exact, recipe):
    again = installed_recipe(exact, repository)
    assert again.choices == recipe.choices
    assert again.limits == FP8
    # which is how `verify` compares it
    folder = repository / STAGE / "1"
    manifest = compare(folder, again, Choices(onnxruntime=False), lambda line: None)
    assert manifest.verification["main"].cosine >= FP8.min_cosine


def test_an_engine_keeps_its_calibration_when_a_build_after_it_stops_half_way(
    repository, choice, exact, monkeypatch, tmp_path
):
    served = tmp_path / "toy"
    shutil.copytree(repository, served)
    before = installed_recipe(exact, served).choices

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("predict2_export.build.write_onnx", interrupted)
    fewer = replace(choice, layers=Fp8Layers(patterns=("mlp.*",)))
    with pytest.raises(KeyboardInterrupt):
        build(TOY, TRAINED, TEMPLATES, served, lambda line: None, only=STAGE, fp8=fewer)
    assert installed_recipe(exact, served).choices == before


@pytest.mark.parametrize("layers", [[], ["blocks.1.mlp.layer9"], ["blocks.1"]])
def test_an_engines_calibration_edited_by_hand_is_refused(repository, exact, tmp_path, layers):
    served = tmp_path / "toy"
    shutil.copytree(repository, served)
    path = served / STAGE / "1" / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers": layers}))
    with pytest.raises(CheckpointError, match=rf"as in FP8, which {STAGE} hasn't; build it again"):
        installed_recipe(exact, served)


def test_weights_that_change_after_they_were_measured_are_not_built(tmp_path, choice, toy_recipes):
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(TRAINED, checkpoints)
    (exact,) = (r for r in recipes(TOY, checkpoints) if r.network == STAGE)
    (recipe,) = (r for r in fp8_recipes(TOY, [exact], choice, tmp_path / "toy", print, only=STAGE))
    recipe.weights()
    exact.checkpoint.touch()
    with pytest.raises(CheckpointError, match="changed while it was read"):
        recipe.weights()


def test_another_presets_repository_is_left_alone(toy_recipes, choice, tmp_path):
    write_preset(tmp_path, PRESETS["2b-480p-16fps"])
    with pytest.raises(InvalidRequestError, match="holds preset 2b-480p-16fps"):
        fp8_recipes(TOY, toy_recipes, choice, tmp_path, print, only=STAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["repository.json"]


def test_wishes_for_a_measurement_that_nobody_makes_are_refused(toy_recipes, choice, tmp_path):
    asked = replace(choice, as_asked=True)
    with pytest.raises(InvalidRequestError, match="every denoiser that is built has a --calibration"):  # fmt: skip
        fp8_recipes(TOY, toy_recipes, asked, tmp_path / "toy", print, only=STAGE)


def test_a_calibration_of_no_stage_that_is_built_is_refused(toy_recipes, choice, tmp_path):
    with pytest.raises(InvalidRequestError, match=r"text2image\.json is a calibration of text2image_denoiser, which isn't built"):  # fmt: skip
        fp8_recipes(TOY, toy_recipes, choice, tmp_path, print, only="video2world_denoiser")
    twice = replace(choice, calibrations=2 * choice.calibrations)
    with pytest.raises(InvalidRequestError, match="isn't built here or has another file"):
        fp8_recipes(TOY, toy_recipes, twice, tmp_path, print, only=STAGE)


def test_a_calibration_of_other_weights_is_refused(exact, calibrations):
    other = replace(calibrations[STAGE], checkpoint_sha256="0" * 64)
    with pytest.raises(CheckpointError, match=r"a\.json was measured on text2image_denoiser"):
        fp8_recipe(exact, other, DEFAULT_LAYERS, "a.json")


def test_pictures_in_fp8_are_those_of_the_exact_level(recipe):
    # Few samples, to find breaks; `make quality` holds hundreds against tighter limits.
    torch.set_num_threads(1)
    networks = load_networks(TRAINED)
    fp8 = replace(networks, text2image=recipe.module(recipe.weights()))
    found = drift(*(judge_text2image(each, 8) for each in (networks, fp8)))
    assert not found.problems()


def test_a_measurement_that_saw_too_little_is_caught_by_the_gate(exact, calibrations):
    torch.set_num_threads(1)
    calibration = calibrations[STAGE]
    low = replace(calibration, amax={name: value / 16 for name, value in calibration.amax.items()})
    recipe = fp8_recipe(exact, low, DEFAULT_LAYERS, "")
    networks = load_networks(TRAINED)
    fp8 = replace(networks, text2image=recipe.module(recipe.weights()))
    found = drift(*(judge_text2image(each, 4) for each in (networks, fp8)))
    assert any("dB between the frames" in problem for problem in found.problems())


def test_an_engine_opens_with_the_roundings_where_they_were_put(repository):
    """By default ONNX Runtime moves them into operators that take no FP8, and can't open the file."""
    import onnxruntime as ort

    path = repository / STAGE / "1" / "main.onnx"
    with pytest.raises(Exception, match="float8e4m3fn"):  # its errors have no common parent
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert open_engine(repository / STAGE / "1", STAGE).manifest.precision == "fp8"
