# SPDX-License-Identifier: Apache-2.0
"""Plans by NVIDIA's own builder: TensorRT-RTX needs no GPU to parse, to check types and to compile."""

import json
import shutil
import subprocess
import sys

import onnx
import pytest

from predict2_export import to_engine
from predict2_export.build_options import BuildOptions
from predict2_export.build_progress import Phases
from predict2_export.profiles import free_dims, input_dims, profile
from predict2_export.recipes import recipes
from predict2_export.to_engine import build_plan, fused_nodes
from predict2_export.toy import TRAINED
from predict2_kernels import plugin_path
from predict2_runtime.engines.tensorrt_log import tensorrt_log
from predict2_spec.errors import EngineBuildError
from predict2_spec.manifest import Range
from predict2_spec.presets import TOY

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="plans are built by TensorRT-RTX: the extra tensorrt-rtx"
)
BOTH = BuildOptions("tensorrt_rtx", ("sm89", "sm120"))
GRAPHS = {
    "text_encoder": ("main",),
    "vae_encoder": ("first", "next"),
    "vae_decoder": ("first", "next"),
    "text2image_denoiser": ("main",),
    "video2world_denoiser": ("main",),
    "guardrail_video": ("faces", "content"),
}


@pytest.fixture(scope="module")
def encoder(toy_plans):
    """The smallest graph, as a file with its weights beside it."""
    return toy_plans.onnx / "text_encoder.main.onnx"


@pytest.fixture
def damaged(encoder, tmp_path):
    """The graph with something changed, weights beside it."""
    model = onnx.load(str(encoder), load_external_data=False)
    shutil.copy(f"{encoder}.data", tmp_path)

    def damage(change, op_type=None):
        nodes = [node for node in model.graph.node if node.op_type == op_type]
        node = nodes[0] if nodes else None
        change(node or model)
        path = tmp_path / "damaged.onnx"
        onnx.save(model, str(path))
        return path, node

    return damage


def shapes(encoder):
    return profile(input_dims(encoder), free_dims(TOY, "text_encoder", "main"), encoder.name)


def build(source, target, ranges, options=BOTH, show=lambda phases: None, **choices):
    return build_plan(source, target, ranges, options, Phases(show), **choices)


def refused(source, target, ranges, options=BOTH):
    """Why a plan can't be built; nothing of it is left."""
    there = set(target.parent.iterdir())
    with pytest.raises(EngineBuildError) as told:
        build(source, target, ranges, options)
    assert set(target.parent.iterdir()) == there
    return str(told.value)


def logged(data):
    """What TensorRT says when it opens a plan on this machine."""
    log = tensorrt_log("tensorrt_rtx")
    log.errors.clear()
    engine = trt.Runtime(log.as_logger()).deserialize_cuda_engine(data)
    return engine, " ".join(log.errors)


@pytest.mark.parametrize(
    ("network", "graph"), [(n, g) for n, names in GRAPHS.items() for g in names]
)
def test_every_graph_of_the_toy_is_a_plan_for_both_gpus(toy_plans, network, graph):
    data = (toy_plans.repository / network / "1" / f"{graph}.plan").read_bytes()
    assert b"accelerators={sm89 sm120 }" in data
    engine, errors = logged(data)
    # Without a GPU that is as far as a plan can be opened; one that is damaged doesn't come so far.
    assert engine is not None or ("CUDA driver" in errors and "Serialization" not in errors)
    _, errors = logged(data[:-1])
    assert "Serialization" in errors


def test_attention_of_a_wide_head_is_lowered_to_products_as_it_has_no_fused_kernel(toy_plans):
    for name in ("vae_encoder.next", "vae_decoder.next"):
        model = onnx.load(str(toy_plans.onnx / f"{name}.onnx"), load_external_data=False)
        kinds = [node.op_type for node in model.graph.node]
        assert "Attention" not in kinds
        assert kinds.count("Softmax") == 1


def test_attention_in_float32_is_built_though_no_kernel_does_it_at_once(toy_plans):
    model = onnx.load(
        str(toy_plans.onnx / "guardrail_video.content.onnx"), load_external_data=False
    )
    assert "Attention" in [node.op_type for node in model.graph.node]
    assert (toy_plans.repository / "guardrail_video" / "1" / "content.plan").is_file()


def test_the_fused_nodes_of_a_denoiser_are_found_with_the_versions_of_their_plugins(toy_plans):
    found = fused_nodes(toy_plans.onnx / "video2world_denoiser.main.onnx")
    assert {"Predict2QkNormRope", "Predict2Modulate", "Predict2Attention"} <= found.keys()
    assert set(found.values()) == {"1"}
    assert fused_nodes(toy_plans.onnx / "vae_decoder.first.onnx") == {}


@pytest.mark.parametrize("network", ["text_encoder", "vae_decoder", "video2world_denoiser"])
def test_tensorrt_knows_every_weight_by_its_name_in_the_checkpoint(toy_plans, network):
    (recipe,) = (r for r in recipes(TOY, TRAINED) if r.network == network)
    graph = "next" if network == "vae_decoder" else "main"
    source = toy_plans.onnx / f"{network}.{graph}.onnx"
    log = tensorrt_log("tensorrt_rtx").as_logger()
    parsed = trt.Builder(log).create_network(0)
    assert trt.OnnxParser(parsed, log).parse_from_file(str(source))
    kept = {
        tensor.name for tensor in onnx.load(str(source), load_external_data=False).graph.initializer
    }
    used = [name for name in recipe.weights() if any(n.endswith(name) for n in kept)]
    if network != "vae_decoder":  # whose recipe has the encoder's weights too
        assert len(used) == len(recipe.weights())
    assert used
    full = [next(n for n in kept if n.endswith(name)) for name in used]
    assert [name for name in full if not parsed.mark_weights_refittable(name)] == []
    assert not parsed.mark_weights_refittable("a weight that isn't there")


FIND = """
import json, sys
from pathlib import Path
from predict2_export.build_options import BuildOptions
from predict2_export.to_engine import find_plugins
from predict2_runtime.engines.bindings import bindings

options = BuildOptions("tensorrt_rtx", ("sm120",), plugins="load")
for path in sys.argv[1:]:  # more than one, as the registry takes a library only once
    print(json.dumps(find_plugins(bindings("tensorrt_rtx"), Path(path), options)))
"""


@pytest.mark.skipif(plugin_path(11) is None, reason="the plugins were not built here")
def test_a_plan_needs_the_plugins_that_both_its_graph_and_the_library_have(toy_plans):
    paths = [toy_plans.onnx / f"{s}.onnx" for s in ("video2world_denoiser.main", "text_encoder.main")]  # fmt: skip
    # In a process of its own: once RTX's parser can find a plugin, it takes the process down instead of a body.
    done = subprocess.run(
        [sys.executable, "-c", FIND, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    denoiser, encoder = map(json.loads, done.stdout.splitlines())
    assert {"Predict2QkNormRope", "Predict2Modulate"} <= denoiser.keys() <= fused_nodes(paths[0]).keys()  # fmt: skip
    assert set(denoiser.values()) == {"1"}
    assert encoder == {}


def test_a_plan_is_written_whole_or_not_at_all(encoder, tmp_path):
    target = tmp_path / "main.plan"
    assert build(encoder, target, shapes(encoder)) == {}
    assert target.read_bytes()[:4] == b"vtrt"
    assert list(tmp_path.iterdir()) == [target]


def test_the_builders_phases_are_told_and_end(encoder, tmp_path):
    seen = []
    build(encoder, tmp_path / "main.plan", shapes(encoder), show=seen.append)
    assert max(map(len, seen)) > 1
    assert seen[0][0].name == seen[-2][0].name  # the outermost
    assert seen[-1] == ()


def test_a_build_that_is_stopped_leaves_nothing(encoder, tmp_path):
    phases = Phases(lambda open_phases: phases.cancel())
    with pytest.raises(EngineBuildError, match="was stopped"):
        build_plan(encoder, tmp_path / "main.plan", shapes(encoder), BOTH, phases)
    assert not list(tmp_path.iterdir())


def test_an_error_of_what_shows_the_progress_stops_the_build_and_is_raised(
    encoder, tmp_path, capfd
):
    def broken(phases):
        raise OSError("the terminal went away")

    with pytest.raises(OSError, match="the terminal went away"):
        build(encoder, tmp_path / "main.plan", shapes(encoder), show=broken)
    assert not list(tmp_path.iterdir())
    assert (
        "Exception caught" not in capfd.readouterr().err
    )  # which the bindings print for what they lose


def test_an_operator_that_tensorrt_lacks_is_named(damaged, encoder, tmp_path):
    def other(node):
        node.op_type = "Frobnicate"

    path, node = damaged(other, "Softmax")
    told = refused(path, tmp_path / "main.plan", shapes(encoder))
    assert f"node {node.name} (Frobnicate): " in told
    assert "damaged.onnx can't be read by tensorrt_rtx" in told


def test_a_damaged_node_is_named_and_why(damaged, encoder, tmp_path):
    def out_of_range(node):
        node.attribute[0].ints[:] = [0, 9]

    path, node = damaged(out_of_range, "Transpose")
    told = refused(path, tmp_path / "main.plan", shapes(encoder))
    assert f"node {node.name} (Transpose): " in told
    assert "is: 9" in told


def test_types_are_never_mixed_silently(damaged, encoder, tmp_path):
    def to_float32(node):
        node.attribute[0].i = onnx.TensorProto.FLOAT

    path, _ = damaged(lambda model: to_float32([n for n in model.graph.node if n.op_type == "Cast"][-1]))  # fmt: skip
    told = refused(path, tmp_path / "main.plan", shapes(encoder))
    assert "BFloat16 and Float" in told
    assert "catchCudaError" not in told


def test_weights_that_are_missing_or_cut_short_are_named(encoder, tmp_path):
    source = tmp_path / encoder.name
    shutil.copy(encoder, source)
    ranges, target = shapes(encoder), tmp_path / "main.plan"
    assert "embed_tokens.weight" in refused(source, target, ranges)
    data = (encoder.parent / f"{encoder.name}.data").read_bytes()
    (tmp_path / f"{encoder.name}.data").write_bytes(data[: len(data) // 2])
    assert ".weight" in refused(source, target, ranges)


def test_a_file_that_is_cut_short_is_refused(encoder, tmp_path):
    source = tmp_path / "half.onnx"
    source.write_bytes(encoder.read_bytes()[:5000])
    assert "half.onnx can't be read" in refused(source, tmp_path / "main.plan", shapes(encoder))


@pytest.mark.parametrize(
    ("least", "best", "most"),
    [
        ((1, 32), (2, 32), (1, 32)),  # descends
        ((0, 32), (2, 32), (2, 32)),  # nothing
        ((1, 16), (2, 32), (2, 32)),  # frees a dim that is fixed
        ((1, 64), (2, 64), (2, 64)),  # another size
        ((1,), (2,), (2,)),
    ],
)
def test_a_profile_that_isnt_the_graphs_is_refused_with_the_input(
    encoder, tmp_path, least, best, most
):
    ranges = shapes(encoder) | {"input_ids": Range(least, best, most)}
    told = refused(encoder, tmp_path / "main.plan", ranges)
    assert "input input_ids is [-1, 32]" in told
    assert str(list(most)) in told


def test_a_profile_of_other_inputs_is_refused(encoder, tmp_path):
    ranges = shapes(encoder)
    del ranges["attention_mask"]
    told = refused(encoder, tmp_path / "main.plan", ranges)
    assert "takes input_ids, attention_mask and the profile is of input_ids" in told


def test_a_gpu_without_the_networks_type_is_refused_in_tensorrts_words(encoder, tmp_path):
    options = BuildOptions("tensorrt_rtx", ("sm75",))
    assert "sm75" in refused(encoder, tmp_path / "main.plan", shapes(encoder), options)


def test_too_small_a_workspace_is_refused_in_tensorrts_words(encoder, tmp_path):
    options = BuildOptions("tensorrt_rtx", ("sm89",), workspace_bytes=2**20)
    told = refused(encoder, tmp_path / "main.plan", shapes(encoder), options)
    assert "within workspace limit" in told
    assert "--workspace" in told


def test_a_timing_cache_that_cant_be_written_costs_no_plan(tmp_path, caplog):
    class Config:
        def get_timing_cache(self):
            return self

        def serialize(self):
            return b"times"

    (tmp_path / "file").write_text("")
    to_engine._write_timing_cache(Config(), tmp_path / "file" / "cache")
    assert "isn't kept" in caplog.text
    to_engine._write_timing_cache(Config(), tmp_path / "cache")
    assert (tmp_path / "cache").read_bytes() == b"times"


def test_memory_that_is_fixed_makes_another_plan(encoder, tmp_path):
    plans = []
    for fixed in (False, True):
        options = BuildOptions("tensorrt_rtx", ("sm89",), fixed_memory=fixed)
        build(encoder, tmp_path / "main.plan", shapes(encoder), options)
        plans.append((tmp_path / "main.plan").stat().st_size)
    assert plans[0] != plans[1]
