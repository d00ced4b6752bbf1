# SPDX-License-Identifier: Apache-2.0
"""Other weights into plans that are there: what is refused before, and what stays when it fails. A GPU does the rest."""

import shutil
from dataclasses import replace

import pytest

from predict2_export.cli import main
from predict2_export.installation import write_manifest
from predict2_export.recipes import recipes
from predict2_export.refit import check_refittable, refit
from predict2_export.toy import TRAINED, write_toy_checkpoint
from predict2_runtime.engines import read_manifest
from predict2_spec.errors import EngineMismatchError, InvalidRequestError
from predict2_spec.presets import TOY

pytest.importorskip(
    "tensorrt_rtx_bindings", reason="plans are built by TensorRT-RTX: the extra tensorrt-rtx"
)
STAGE = "text_encoder"


def recipe_of(checkpoints):
    return next(r for r in recipes(TOY, checkpoints) if r.network == STAGE)


@pytest.fixture
def repository(toy_plans, tmp_path):
    """A repository with a plan whose manifest can be made to say anything."""

    def install(**changes):
        folder = tmp_path / "served"
        shutil.copytree(toy_plans.repository / STAGE, folder / STAGE)
        shutil.copy(toy_plans.repository / "repository.json", folder)
        engine = folder / STAGE / "1"
        write_manifest(engine, replace(read_manifest(engine), **changes))
        return folder

    return install


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    write_toy_checkpoint(folder, seed=3)
    return folder


def test_plans_with_fixed_weights_take_no_others(repository):
    with pytest.raises(InvalidRequestError, match=r"with fixed weights; only plans .* --refit"):
        check_refittable(repository(), recipe_of(TRAINED))


def test_engines_of_onnxruntime_take_none(repository):
    folder = repository(kind="onnxruntime", weights="refittable", device="cpu")
    with pytest.raises(InvalidRequestError, match="an engine of onnxruntime"):
        check_refittable(folder, recipe_of(TRAINED))


def test_a_stripped_plan_takes_its_own_weights_alone(repository, others):
    folder = repository(weights="stripped")
    assert check_refittable(folder, recipe_of(TRAINED)).weights == "stripped"
    with pytest.raises(InvalidRequestError, match="the very weights that it was built from"):
        check_refittable(folder, recipe_of(others))


@pytest.mark.parametrize("weights", ["refittable", "stripped, refittable"])
def test_a_refittable_plan_takes_any_weights_of_its_network(repository, others, weights):
    folder = repository(weights=weights)
    assert check_refittable(folder, recipe_of(others)).weights == weights


def test_where_the_plans_gpu_is_missing_the_old_plan_stays(repository, others):
    folder = repository(weights="refittable")
    before = {p: p.read_bytes() for p in (folder / STAGE).rglob("*") if p.is_file()}
    lines = []
    with pytest.raises(EngineMismatchError, match=r"can't open .*CUDA"):
        refit(folder, recipe_of(others), lines.append)
    assert lines == ["lowering main to ONNX", "refitting main"]
    assert {p: p.read_bytes() for p in (folder / STAGE).rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in folder.parent.iterdir()) == ["served"]


def test_the_command_refuses_before_any_work(repository, capsys):
    folder = repository()
    assert main(["refit", str(folder), "--checkpoints", str(TRAINED)]) == 1
    assert "with fixed weights" in capsys.readouterr().err
