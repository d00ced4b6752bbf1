# SPDX-License-Identifier: Apache-2.0
"""The build's promises, shown on its smallest engine; the whole preset is built for the live-server tests."""

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from safetensors.torch import load_file, save_file

from predict2_export import build as building
from predict2_export.build import build
from predict2_export.checkpoint.names import text_encoder_state_dict
from predict2_export.installation import digest
from predict2_runtime.engines import open_engine, read_manifest
from predict2_runtime.stages.text_encoder import TextEncoder
from predict2_spec.errors import CheckpointError, VerificationError
from predict2_spec.presets import PRESETS, TOY

TEMPLATES = Path(__file__).parents[2] / "model_repository"
STAGE = "text_encoder"


@pytest.fixture(scope="module")
def repository(checkpoints, tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "toy"
    build(TOY, checkpoints, TEMPLATES, output, lambda line: None, only=STAGE)
    return output


def rebuilt(checkpoints, repository):
    lines = []
    build(TOY, checkpoints, TEMPLATES, repository, lines.append, only=STAGE)
    return lines


def test_an_engine_is_installed_with_a_manifest_that_says_how_well_it_agrees(repository):
    manifest = read_manifest(repository / STAGE / "1")
    assert (manifest.network, manifest.preset, manifest.precision) == (STAGE, "toy", "fp32")
    result = manifest.verification["main"]
    assert result.cosine >= result.min_cosine
    assert result.max_error <= result.max_error_limit
    assert {"torch", "onnx", "onnxruntime"} <= manifest.versions.keys()


def test_the_installed_stage_encodes_prompts(repository):
    stage = TextEncoder.open(repository / STAGE / "1", TOY)
    embeds = stage({"prompt": ["a red ball", "a blue ball", "a red ball"]})["prompt_embeds"]
    assert embeds.shape == (3, TOY.text_encoder.num_tokens, TOY.text_encoder.width)
    assert (embeds[0] == embeds[2]).all()
    assert (embeds[0] != embeds[1]).any()
    assert not embeds[0, len("a red ball") + 1 :].any()  # one byte a token, then the end mark


def test_weights_keep_their_names_in_the_graph(repository, checkpoints):
    graph = onnx.load(str(repository / STAGE / "1" / "main.onnx"), load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    weights = text_encoder_state_dict(load_file(checkpoints / TOY.text_encoder_path))
    kept = [name for name in weights if any(n.endswith(name) for n in names)]
    assert sorted(kept) == sorted(weights)


def test_the_graph_tells_nothing_of_the_machine_it_was_made_on(repository):
    data = (repository / STAGE / "1" / "main.onnx").read_bytes()
    assert str(Path.home()).encode() not in data
    assert str(TEMPLATES.parent).encode() not in data


def test_a_second_build_keeps_what_is_current(checkpoints, repository):
    before = (repository / STAGE / "1" / "manifest.json").stat().st_mtime_ns
    lines = rebuilt(checkpoints, repository)
    assert any("already built" in line for line in lines)
    assert (repository / STAGE / "1" / "manifest.json").stat().st_mtime_ns == before


def test_other_weights_are_built_again(checkpoints, repository, tmp_path):
    changed, served = tmp_path / "checkpoints", tmp_path / "toy"
    shutil.copytree(checkpoints, changed)
    shutil.copytree(repository, served)
    path = changed / TOY.text_encoder_path
    save_file({name: value * 1.01 for name, value in load_file(path).items()}, path)
    assert any("lowering" in line for line in rebuilt(changed, served))


def test_a_kept_engine_still_gets_the_current_model_files(checkpoints, repository, tmp_path):
    served = tmp_path / "toy"
    shutil.copytree(repository, served)
    (served / STAGE / "config.pbtxt").write_text("old")
    assert any("kept" in line for line in rebuilt(checkpoints, served))
    current = (TEMPLATES / STAGE / "config.pbtxt").read_text()
    assert (served / STAGE / "config.pbtxt").read_text() == current


def test_another_tokenizer_is_installed(checkpoints, repository, tmp_path):
    changed, served = tmp_path / "checkpoints", tmp_path / "toy"
    shutil.copytree(checkpoints, changed)
    shutil.copytree(repository, served)
    path = changed / TOY.tokenizer_path
    path.write_text(path.read_text() + "\n")
    rebuilt(changed, served)
    assert (served / STAGE / "1" / "tokenizer.json").read_text() == path.read_text()


def test_an_engine_cut_short_is_built_again(checkpoints, repository, tmp_path):
    served = tmp_path / "toy"
    shutil.copytree(repository, served)
    data = served / STAGE / "1" / "main.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert any("lowering" in line for line in rebuilt(checkpoints, served))
    open_engine(served / STAGE / "1", STAGE)


def test_missing_files_are_all_named_before_anything_is_built(tmp_path):
    with pytest.raises(CheckpointError, match=r"preset toy needs .*text_encoder.*tokenizer\.json"):
        build(TOY, tmp_path, TEMPLATES, tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_released_preset_without_the_guardrails_files_says_how_to_get_them_or_do_without(
    tmp_path,
):
    preset = PRESETS["0.6b"]
    with pytest.raises(CheckpointError, match=r"safety_filter\.pt.* fetch --preset 0\.6b --with guardrails, after") as told:  # fmt: skip
        build(preset, tmp_path, TEMPLATES, tmp_path / "out", lambda line: None)
    assert "accepted the licences" in str(told.value)
    assert "build with --skip-guardrail-video" in str(told.value)
    with pytest.raises(CheckpointError) as told:
        build(preset, tmp_path, TEMPLATES, tmp_path / "out", lambda line: None, guard_frames=False)
    assert "Guardrail" not in str(told.value)
    assert "--with" not in str(told.value)


def test_a_build_without_the_frame_guard_takes_an_old_one_away(checkpoints, tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(building, "_build_stage", lambda preset, templates, output, recipe, tell: built.append(recipe.network))  # fmt: skip
    output, lines = tmp_path / "toy", []
    (output / "guardrail_video" / "1").mkdir(parents=True)
    build(TOY, checkpoints, TEMPLATES, output, lines.append, guard_frames=False)
    assert "guardrail_video" not in built
    assert len(built) == 5
    assert not (output / "guardrail_video").exists()
    assert any("guardrail_video is left out" in line for line in lines)


def test_an_engine_that_disagrees_is_not_installed(checkpoints, tmp_path, monkeypatch):
    # A lowering that loses something: the graph is written from other weights than it is checked against.
    def sloppy(graph, path, network, weights, report):
        name, right = next(iter(weights.items()))
        wrong = replace(right, load=lambda: 1.5 * right.load())
        write_onnx(graph, path, network, {**weights, name: wrong}, report)

    write_onnx = building.write_onnx
    monkeypatch.setattr(building, "write_onnx", sloppy)
    output = tmp_path / "served" / "toy"
    with pytest.raises(
        VerificationError, match=r"text_encoder/main: .* this engine isn't installed"
    ):
        build(TOY, checkpoints, TEMPLATES, output, lambda line: None, only=STAGE)
    assert not (output / STAGE).exists()
    assert list(output.parent.iterdir()) == [output]  # and no half-made folder is left


def test_an_interrupted_build_leaves_the_old_engine_in_place(
    checkpoints, repository, tmp_path, monkeypatch
):
    served, changed = tmp_path / "served" / "toy", tmp_path / "checkpoints"
    shutil.copytree(repository, served)
    shutil.copytree(checkpoints, changed)
    path = changed / TOY.text_encoder_path
    save_file({name: value * 2 for name, value in load_file(path).items()}, path)

    def interrupted(graph, path, *rest):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "write_onnx", interrupted)
    before = digest([served / STAGE])
    with pytest.raises(KeyboardInterrupt):
        rebuilt(changed, served)
    assert digest([served / STAGE]) == before
    assert list(served.parent.iterdir()) == [served]


def test_weights_that_are_written_while_they_are_read_are_not_installed(
    checkpoints, repository, tmp_path, monkeypatch
):
    served, changed = tmp_path / "served" / "toy", tmp_path / "checkpoints"
    shutil.copytree(repository, served)
    shutil.copytree(checkpoints, changed)
    path = changed / TOY.text_encoder_path
    save_file({name: value * 2 for name, value in load_file(path).items()}, path)
    real = building.write_onnx

    def slow(*args):
        real(*args)
        path.touch()

    monkeypatch.setattr(building, "write_onnx", slow)
    before = digest([served / STAGE])
    with pytest.raises(CheckpointError, match="changed while it was read"):
        rebuilt(changed, served)
    assert digest([served / STAGE]) == before


def test_a_preset_without_video_needs_no_video_networks(checkpoints):
    image_only = replace(TOY, video2world=None, video2world_path="")
    names = [recipe.network for recipe in building.recipes(image_only, checkpoints)]
    assert names == ["text_encoder", "vae_decoder", "text2image_denoiser", "guardrail_video"]
