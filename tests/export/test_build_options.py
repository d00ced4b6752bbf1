# SPDX-License-Identifier: Apache-2.0
"""What can't be built is refused before any work, with the way out."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from predict2_export.build_options import (
    BuildOptions,
    check_options,
    find_architectures,
    rtx_architectures,
)
from predict2_kernels import plugin_path
from predict2_runtime.engines.bindings import bindings
from predict2_spec.errors import EngineBuildError, EngineMismatchError, InvalidRequestError

RTX = BuildOptions("tensorrt_rtx", ("sm89",))
FULL = BuildOptions("tensorrt", ("sm90",))


@pytest.fixture
def rtx():
    pytest.importorskip("tensorrt_rtx_bindings", reason="it says which GPUs it knows")
    return bindings("tensorrt_rtx")


# check_options asks TensorRT's bindings for their version alone, and this machine needn't have them.
V11 = SimpleNamespace(__name__="tensorrt", __version__="11.1.0.106")
V99 = SimpleNamespace(
    __name__="tensorrt", __version__="99.0.0.1"
)  # for which no plugins were built


def check(options, module=V11, *, timing_cache=False, gpu=False):
    check_options(options, module, timing_cache=timing_cache, gpu=gpu)


@pytest.mark.parametrize("version", ["10.13.3.9", "10.14.1.48", "9.3.0"])
def test_a_tensorrt_whose_parser_lacks_operators_is_refused(version):
    module = SimpleNamespace(__name__="tensorrt", __version__=version)
    with pytest.raises(
        InvalidRequestError, match=rf"^TensorRT {version} can't .*install 10\.15 or later"
    ):
        check(FULL, module)


def test_later_ones_are_taken(rtx):
    for version in ("10.15.1.29", "10.16.1.11", "11.0.0.114"):
        check(FULL, SimpleNamespace(__name__="tensorrt", __version__=version))
    check(RTX, rtx)  # which counts its own versions


def test_rtx_builds_for_gpus_that_arent_there(rtx):
    assert {"sm80", "sm89", "sm120"} <= rtx_architectures(rtx).keys()
    assert find_architectures("tensorrt_rtx", ("sm120", "sm89", "sm120"), "") == ("sm120", "sm89")
    assert find_architectures("tensorrt_rtx", (), "sm89") == ("sm89",)


@pytest.mark.parametrize(
    ("asked", "here", "said"),
    [((), "", "no GPU is here and none was named"), (("sm89", "sm90"), "", "sm89, sm90 was given"), ((), "sm90", "sm90 was given")],
)  # fmt: skip
def test_a_gpu_that_rtx_has_no_code_for_is_refused_with_those_it_has(rtx, asked, here, said):
    with pytest.raises(
        InvalidRequestError, match=rf"^{said}; .* builds for .*sm89.*: .*--gpu-arch"
    ):
        find_architectures("tensorrt_rtx", asked, here)


def test_bindings_that_arent_installed_are_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if it weren't installed
    with pytest.raises(
        EngineMismatchError, match=r"tensorrt can't be used here .* pip install tensorrt"
    ):
        find_architectures("tensorrt", (), "sm90")


def test_tensorrt_builds_for_the_gpu_that_is_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", V11)
    assert find_architectures("tensorrt", (), "sm90") == ("sm90",)
    assert find_architectures("tensorrt", ("sm90",), "sm90") == ("sm90",)
    with pytest.raises(
        InvalidRequestError, match=r"torch finds none here; .* --flavour tensorrt_rtx"
    ):
        find_architectures("tensorrt", ("sm90",), "")
    with pytest.raises(InvalidRequestError, match="this machine, sm90, not for sm100; leave out --gpu-arch"):  # fmt: skip
        find_architectures("tensorrt", ("sm100",), "sm90")


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"plugins": "load"}, "--plugins none"),
        ({"plugins": "serialize", "version_compatible": True}, "--plugins none"),
        ({"version_compatible": True}, "leave out --version-compatible"),
    ],
)
def test_what_rtx_lacks_is_refused(rtx, changes, way_out):
    with pytest.raises(InvalidRequestError, match=f"tensorrt_rtx has no .*{way_out}"):
        check(replace(RTX, **changes), rtx, gpu=True)
    with pytest.raises(InvalidRequestError, match="has no timing cache; leave out --timing-cache"):
        check(RTX, rtx, timing_cache=True, gpu=True)


@pytest.mark.parametrize("changes", [{"refittable": True}, {"stripped": True}])
def test_rtx_builds_changeable_plans_for_one_gpu_and_only_where_one_is(rtx, changes):
    options = replace(RTX, **changes)
    check(options, rtx, gpu=True)
    with pytest.raises(InvalidRequestError, match="needs a GPU to build"):
        check(options, rtx, gpu=False)
    with pytest.raises(InvalidRequestError, match="one GPU at a time, not for sm89, sm120"):
        check(replace(options, architectures=("sm89", "sm120")), rtx, gpu=True)


def test_plugins_go_into_version_compatible_plans_alone():
    with pytest.raises(InvalidRequestError, match="add --version-compatible"):
        check(replace(FULL, plugins="serialize"))


def test_plugins_that_werent_built_are_refused_with_the_way_without_them():
    assert plugin_path(99) is None
    with pytest.raises(EngineBuildError, match=r"TensorRT 99 weren't built here.* --plugins none"):
        check(replace(FULL, plugins="load"), V99)
    check(FULL, V99)


@pytest.mark.parametrize("level", [-1, 6])
def test_an_optimization_level_that_isnt_one_is_refused(level):
    with pytest.raises(InvalidRequestError, match=f"optimization level {level} must be 0 to 5"):
        check(replace(FULL, optimization_level=level))


def test_an_empty_workspace_is_refused():
    with pytest.raises(InvalidRequestError, match="workspace of 0 bytes"):
        check(replace(FULL, workspace_bytes=0))


def test_options_are_told_in_the_manifests_words():
    assert BuildOptions("tensorrt_rtx", ("sm89", "sm120")).device == "sm89+sm120"
    assert FULL.weights == "fixed"
    assert replace(FULL, refittable=True).weights == "refittable"
    assert replace(FULL, refittable=True, stripped=True).weights == "stripped, refittable"
    assert replace(FULL, stripped=True).weights == "stripped"
