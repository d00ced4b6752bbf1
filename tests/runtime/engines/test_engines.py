# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from predict2_runtime.engines import open_engine
from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import MANIFEST_FILE, Graph, Manifest


@pytest.fixture
def installed(tmp_path):
    """A one-operator engine, installed, and its manifest."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in ("x", "y")]
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path / "main.onnx"
    onnx.save(model, path)
    graph = Graph("main.onnx", "", path.stat().st_size, {"x": ""}, {"y": ""})
    manifest = Manifest(
        "vae_decoder", "toy", "onnxruntime", "fp32", "cpu", "", "", {}, {"main": graph}
    )
    return tmp_path, manifest


def opened(installed, **changes):
    folder, manifest = installed
    (folder / MANIFEST_FILE).write_text(replace(manifest, **changes).to_json())
    return open_engine(folder, "vae_decoder")


def test_an_engine_is_callable_like_the_module_it_replaces(installed):
    engine = opened(installed).graphs["main"]
    assert engine({"x": np.float32([1, -2])})["y"].tolist() == [-1, 2]


def test_an_empty_folder_says_how_to_fill_it(tmp_path):
    with pytest.raises(
        EngineMismatchError, match=r"no engine in .*: build one with `predict2-export"
    ):
        open_engine(tmp_path, "vae_decoder")


def test_a_manifest_that_is_no_text_is_refused(tmp_path):
    (tmp_path / MANIFEST_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(EngineMismatchError, match=r"manifest\.json can't be read .* build the"):
        open_engine(tmp_path, "vae_decoder")


def test_another_networks_engine_is_refused(installed):
    with pytest.raises(EngineMismatchError, match="the engine of vae_encoder, not of vae_decoder"):
        opened(installed, network="vae_encoder")


def test_an_unknown_kind_is_refused(installed):
    with pytest.raises(
        EngineMismatchError,
        match="engine kind 'abacus' of vae_decoder can't be run by this version; it runs onnxruntime, tensorrt, tens",
    ):
        opened(installed, kind="abacus")


def test_an_engine_for_a_device_that_is_not_here_is_refused(installed):
    with pytest.raises(
        EngineMismatchError, match=r"was built for tpu, which onnxruntime .* can't use"
    ):
        opened(installed, device="tpu")


def test_a_file_of_another_length_is_refused(installed):
    path = installed[0] / "main.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EngineMismatchError, match=r"main.onnx has \d+ bytes instead of \d+; build"):
        opened(installed)


def test_a_missing_file_is_refused(installed):
    (installed[0] / "main.onnx").unlink()
    with pytest.raises(
        EngineMismatchError,
        match=r"main\.onnx is missing; build vae_decoder again: predict2-export build --preset toy --only vae_decoder$",
    ):
        opened(installed)


def test_a_graph_with_other_inputs_than_its_manifest_is_refused(installed):
    graph = replace(installed[1].graphs["main"], inputs={"z": ""})
    with pytest.raises(EngineMismatchError, match=r"takes \['x'\], its manifest says \['z'\]"):
        opened(installed, graphs={"main": graph})


def test_a_damaged_graph_is_refused(installed):
    path = installed[0] / "main.onnx"
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(EngineMismatchError, match=r"can.t open .*main\.onnx"):
        opened(installed)


def test_on_numpy_is_the_graph_itself_where_it_computes_on_numpy_arrays(installed):
    engine = opened(installed)
    assert engine.on_numpy("main") is engine.graphs["main"]


def test_nothing_of_torch_is_imported_for_onnxruntime(installed):
    opened(installed)  # writes the manifest
    code = (
        "import sys, pathlib; from predict2_runtime.engines import open_engine;"
        f"open_engine(pathlib.Path({str(installed[0])!r}), 'vae_decoder');"
        "assert not {'torch', 'tensorrt', 'tensorrt_rtx_bindings'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
