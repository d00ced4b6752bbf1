# SPDX-License-Identifier: Apache-2.0
"""Installed engines against torch: on an engine that runs here, and on one in bfloat16 that torch plays."""

import errno
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from predict2_export import comparison
from predict2_export.build import build
from predict2_export.comparison import Choices, compare, limits_beside
from predict2_export.installation import write_manifest
from predict2_export.networks.export_graph import ExportGraph
from predict2_export.recipes import recipes
from predict2_export.toy import write_toy_checkpoint
from predict2_export.verify import Distance, distance, run_module
from predict2_runtime.engines import InstalledEngine, read_manifest
from predict2_spec.errors import CheckpointError, InvalidRequestError, VerificationError
from predict2_spec.manifest import MANIFEST_FILE, Range
from predict2_spec.presets import TOY

TEMPLATES = Path(__file__).parents[2] / "model_repository"
STAGE = "text2image_denoiser"
RANGES = {  # not the sizes that the graph was exported at
    "hidden_states": ((1, 16, 1, 4, 4), (2, 16, 1, 8, 6), (2, 16, 1, 12, 12)),
    "timestep": ((1, 1), (2, 1), (2, 1)),
    "encoder_hidden_states": ((1, 32, 64), (2, 32, 64), (2, 32, 64)),
}


@pytest.fixture(scope="module")
def built(checkpoints, tmp_path_factory):
    output = tmp_path_factory.mktemp("served") / "toy"
    build(TOY, checkpoints, TEMPLATES, output, lambda line: None, only=STAGE)
    return output / STAGE / "1"


@pytest.fixture
def engine(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "engine"))


@pytest.fixture(scope="module")
def recipe(checkpoints):
    return next(r for r in recipes(TOY, checkpoints) if r.network == STAGE)


def in_bfloat16(recipe, gain=1.0):
    """What opens an engine that is the torch module in bfloat16, `gain` times as loud."""

    def opened(folder, network):
        manifest = read_manifest(folder)
        profile = {name: Range(*bounds) for name, bounds in RANGES.items()}
        kinds = dict.fromkeys(RANGES, "BFLOAT16 [...]")
        main = replace(manifest.graphs["main"], profile=profile, inputs=kinds)
        graph = recipe.graphs(recipe.module(recipe.weights()).to(torch.bfloat16))["main"]
        seen.append({})

        def run(inputs):
            seen[-1].update({name: array.shape for name, array in inputs.items()})
            return {key: gain * value for key, value in run_module(graph, inputs).items()}

        changed = replace(manifest, kind="tensorrt", precision="bf16", graphs={"main": main})
        return InstalledEngine(changed, {"main": run})

    seen = []
    return opened, seen


def test_an_engine_that_agrees_gets_its_record_anew(engine, recipe):
    blank = replace(read_manifest(engine), verification={})
    (engine / MANIFEST_FILE).write_text(blank.to_json())
    lines = []
    written = compare(engine, recipe, Choices(), lines.append)
    assert read_manifest(engine) == written
    record = written.verification["main"]
    assert record.max_error <= record.max_error_limit == recipe.limits.max_error
    assert any(line.startswith("main: engine cosine 1.0000000") for line in lines)


def test_an_engine_with_other_numbers_is_reported_and_its_manifest_stays(engine, recipe):
    path = engine / "main.onnx.data"
    weights = bytearray(path.read_bytes())
    numbers = np.frombuffer(weights, np.float32)  # a view: the file is as long as before
    numbers *= np.float32(1.1)
    path.write_bytes(weights)
    before = (engine / MANIFEST_FILE).read_text()
    with pytest.raises(VerificationError, match=r"text2image_denoiser/main: .* build it again"):
        compare(engine, recipe, Choices(), lambda line: None)
    assert (engine / MANIFEST_FILE).read_text() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said(engine, recipe):
    with pytest.raises(InvalidRequestError, match=r"finds no GPU here .* drop --device cuda"):
        compare(engine, recipe, Choices(device="cuda"), lambda line: None)


def test_a_gpu_that_is_too_small_is_said(engine, recipe, monkeypatch):
    def full(graph, inputs):
        raise torch.OutOfMemoryError("Tried to allocate 57 GiB")

    monkeypatch.setattr(comparison, "run_module", full)
    with pytest.raises(InvalidRequestError, match=r"Tried to allocate 57 GiB.*--shapes min$"):
        compare(engine, recipe, Choices(), lambda line: None)


def test_a_manifest_that_cannot_be_written_anew_stays(engine, monkeypatch):
    def full(path, text, **options):
        path.write_bytes(text.encode()[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    before = read_manifest(engine)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_manifest(engine, replace(before, verification={}))
    assert read_manifest(engine) == before


def test_an_engine_of_other_weights_is_not_compared(engine, recipe, tmp_path):
    other = tmp_path / "other"
    write_toy_checkpoint(other, seed=7)
    changed = next(r for r in recipes(TOY, other) if r.network == STAGE)
    with pytest.raises(CheckpointError, match="was made from other weights"):
        compare(engine, changed, Choices(), lambda line: None)


@pytest.mark.parametrize("which", ["min", "max"])
def test_a_bfloat16_engine_is_measured_by_what_the_type_costs_torch(
    engine, recipe, monkeypatch, which
):
    opened, seen = in_bfloat16(recipe)
    monkeypatch.setattr(comparison, "open_engine", opened)
    record = compare(engine, recipe, Choices(shapes=which), lambda line: None).verification["main"]
    index = ("min", "opt", "max").index(which)
    assert seen[-1] == {name: bounds[index] for name, bounds in RANGES.items()}
    rounded = record.beside["torch in the engine's type"]
    assert (record.cosine, record.max_error) == pytest.approx(rounded)
    assert 1e-3 < record.max_error < record.max_error_limit == pytest.approx(2 * rounded[1])
    assert record.beside["onnxruntime in float32"][1] < 1e-5


def test_a_bfloat16_engine_beyond_what_the_type_costs_is_refused(engine, recipe, monkeypatch):
    monkeypatch.setattr(comparison, "open_engine", in_bfloat16(recipe, gain=1.2)[0])
    with pytest.raises(
        VerificationError, match=r"cosine .* largest error [12]\.\d+e-01 \(limit \d\.\de-02"
    ):
        compare(engine, recipe, Choices(onnxruntime=False), lambda line: None)


def test_module_and_engine_are_never_in_memory_at_once(engine, recipe, monkeypatch):
    opened, _ = in_bfloat16(recipe)
    modules, engines = [], []  # weak references to all there were

    def there(references):
        return sum(reference() is not None for reference in references)

    def opening(folder, network):
        assert not there(modules)
        installed = opened(folder, network)
        engines.append(weakref.ref(installed))
        modules.clear()  # the engine is played by one
        return installed

    def running(graph, inputs):
        assert not there(engines)
        modules.append(weakref.ref(graph.module))
        return run_module(graph, inputs)

    monkeypatch.setattr(comparison, "open_engine", opening)
    monkeypatch.setattr(comparison, "run_module", running)
    compare(engine, recipe, Choices(onnxruntime=False), lambda line: None)
    assert len(engines) == 2


def test_the_reference_keeps_all_bits_of_float32():
    class Module(torch.nn.Module):
        def forward(self, x):
            seen.append(torch.backends.cudnn.allow_tf32)
            return x

    seen, before = [], torch.backends.cudnn.allow_tf32
    graph = ExportGraph(Module(), (torch.ones(1),), ["x"], ["y"], {})
    run_module(graph, {"x": np.ones(1, np.float32)})
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 == before


def test_limits_never_get_tighter_than_those_of_float32():
    limits = limits_beside(Distance(1.0, 0.0))
    assert (limits.min_cosine, limits.max_error) == (0.99999, 1e-3)


def test_not_a_number_is_infinitely_far_wherever_it_is():
    good, bad = np.ones(3), np.array([1.0, np.nan, 1.0])
    assert distance({"a": good, "b": good}, {"a": good, "b": bad}) == (-1.0, np.inf)
    assert distance({"a": good, "b": bad}, {"a": good, "b": bad}) == (-1.0, np.inf)
    assert distance({"a": good, "b": 0 * good}, {"a": 2 * good, "b": 0 * good}) == (1.0, 1.0)
