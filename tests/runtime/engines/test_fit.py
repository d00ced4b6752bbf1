# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest

from predict2_runtime.engines import fit
from predict2_spec.errors import EngineMismatchError, InvalidRequestError
from predict2_spec.manifest import Graph, Manifest, Range

GRAPH = Graph("main.plan", "", 1, {"x": ""}, {"y": ""})
PLAN = Manifest(
    network="text2image_denoiser",
    preset="2b-480p-16fps",
    kind="tensorrt",
    precision="bf16",
    device="sm90",
    checkpoint_sha256="",
    recipe="",
    versions={"tensorrt": "10.13.3.9"},
    graphs={"main": GRAPH},
)
RTX = replace(
    PLAN, kind="tensorrt_rtx", device="sm89+sm120", versions={"tensorrt_rtx": "1.7.1.116"}
)
REBUILD = "predict2-export engine --preset 2b-480p-16fps --only text2image_denoiser --flavour {}$"
TIMES = {"x": Range((1, 16, 1, 8, 8), (2, 16, 24, 88, 160), (2, 16, 24, 88, 160))}


def test_a_plan_runs_with_the_version_that_built_it():
    fit.check_version(PLAN, "10.13.3.9")
    fit.check_version(RTX, "1.7.1.116")


@pytest.mark.parametrize(
    ("manifest", "here"),
    [
        (PLAN, "10.13.3.10"),
        (PLAN, "11.1.0.106"),
        (RTX, "1.7.2.1"),
        (replace(RTX, version_compatible=True), "1.8.0.1"),  # RTX has no such plans
        (replace(PLAN, version_compatible=True), "10.13.2.6"),  # older than the plan
        (replace(PLAN, version_compatible=True), "9.99.99"),
        (replace(PLAN, versions={}), "10.13.3.9"),
        (replace(PLAN, versions={"tensorrt": "x"}, version_compatible=True), "10.13.3.9"),
        (replace(PLAN, version_compatible=True, plugins={"Predict2Modulate": "1"}), "11.0.0.114"),
    ],
)
def test_a_plan_of_another_version_is_refused_with_the_command_that_builds_it(manifest, here):
    with pytest.raises(EngineMismatchError, match=REBUILD.format(manifest.kind)) as error:
        fit.check_version(manifest, here)
    assert here in str(error.value)


@pytest.mark.parametrize("here", ["10.13.3.9", "10.14.0.1", "11.0.0.114"])
def test_a_version_compatible_plan_runs_with_later_versions(here):
    fit.check_version(replace(PLAN, version_compatible=True), here)


def test_plugins_of_a_version_compatible_plan_are_of_its_major_version():
    loading = replace(PLAN, version_compatible=True, plugins={"Predict2Modulate": "1"})
    fit.check_version(loading, "10.14.0.1")
    fit.check_version(replace(loading, plugins_inside=True), "11.0.0.114")


def test_a_gpu_must_be_among_those_that_a_plan_was_built_for():
    fit.check_architecture(PLAN, "sm90")
    fit.check_architecture(RTX, "sm120")
    for manifest, here in ((PLAN, "sm89"), (PLAN, "sm9"), (RTX, "sm12"), (RTX, "sm89+sm120")):
        message = f"was built for .*, and this GPU is .*{REBUILD.format(manifest.kind)}"
        with pytest.raises(EngineMismatchError, match=message):
            fit.check_architecture(manifest, here)


def test_a_plan_whose_weights_were_left_out_is_refused():
    fit.check_weights(replace(PLAN, weights="refittable"))
    with pytest.raises(EngineMismatchError, match=r"wasn't refitted, .*--flavour tensorrt$"):
        fit.check_weights(replace(PLAN, weights="stripped"))


def test_a_plan_must_take_what_its_manifest_says():
    fit.check_names(PLAN, "main", ["x"])
    with pytest.raises(EngineMismatchError, match=r"takes \['x', 'z'\], its manifest says \['x'\]"):
        fit.check_names(PLAN, "main", ["z", "x"])


@pytest.mark.parametrize("shape", [(1, 16, 1, 8, 8), (2, 16, 24, 88, 160), (2, 16, 3, 9, 100)])
def test_shapes_within_the_profile_pass(shape):
    fit.check_shapes("denoiser/main", {"x": shape}, TIMES)


@pytest.mark.parametrize(
    "shape", [(3, 16, 24, 88, 160), (0, 16, 1, 8, 8), (1, 16, 1, 8, 7), (1, 16, 8, 8), ()]
)
def test_a_shape_outside_the_profile_is_refused_with_value_and_limits(shape):
    with pytest.raises(InvalidRequestError) as error:
        fit.check_shapes("denoiser/main", {"x": shape}, TIMES)
    for part in (
        "denoiser/main: x is",
        str(list(shape)),
        "[1, 16, 1, 8, 8] to [2, 16, 24, 88, 160]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("shapes", [{}, {"x": (1, 16, 1, 8, 8), "z": (1,)}, {"z": (1,)}])
def test_inputs_of_other_names_are_refused(shapes):
    with pytest.raises(InvalidRequestError, match=r"denoiser/main takes \['x'\], not"):
        fit.check_shapes("denoiser/main", shapes, TIMES)
