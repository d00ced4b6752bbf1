# SPDX-License-Identifier: Apache-2.0
"""Engines of TensorRT, of either flavour, on a real GPU, against ONNX Runtime on the CPU."""

import gc
from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from predict2_runtime.engines.bindings import FLAVOURS, bindings
from predict2_spec.errors import EngineMismatchError, InvalidRequestError

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]

WIDTH = 64
# float32 products of up to 1024 terms, summed in another order; RTX compiles other kernels as it goes
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def architecture():
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


@pytest.fixture(scope="module", params=FLAVOURS)
def flavour(request):
    """The flavours that are installed here and know this GPU."""
    try:
        trt = bindings(request.param)
    except EngineMismatchError as error:
        pytest.skip(str(error))
    if request.param == "tensorrt_rtx" and not hasattr(
        trt.ComputeCapability, architecture().upper()
    ):
        pytest.skip(f"TensorRT-RTX knows no {architecture()}")
    return request.param


@pytest.fixture(scope="module")
def installed(flavour, install, tmp_path_factory):
    return install(tmp_path_factory.mktemp(flavour), flavour, architecture())


@pytest.fixture(scope="module")
def opened(installed):
    return installed.open()


def rows(count, seed=0):
    return np.random.RandomState(seed).randn(count, WIDTH).astype(np.float32)


def expected(installed, graph, x):
    session = ort.InferenceSession(
        str(installed.folder / f"{graph}.onnx"), providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], {"x": x})[0]


@pytest.mark.parametrize(
    ("graph", "count"), [("first", 1), ("first", 64), ("next", 512), ("next", 3)]
)
def test_an_engine_equals_onnxruntime(installed, opened, graph, count):
    x = rows(count)
    y = opened.graphs[graph]({"x": torch.from_numpy(x).cuda()})["y"]
    assert y.is_cuda
    np.testing.assert_allclose(y.cpu().numpy(), expected(installed, graph, x), **TOLERANCE)
    on_numpy = opened.on_numpy(graph)({"x": x})["y"]
    np.testing.assert_allclose(on_numpy, y.cpu().numpy(), **TOLERANCE)


def test_arrays_of_other_kinds_and_types_are_taken(installed, opened):
    x = rows(4)
    wanted = expected(installed, "first", x)
    wide = torch.from_numpy(x).cuda().double()
    transposed = torch.from_numpy(x.T.copy()).cuda().T
    padded = torch.cat([torch.zeros(1), torch.from_numpy(x).flatten()]).cuda()
    unaligned = padded[1:].view(4, WIDTH)
    for given in (x, torch.from_numpy(x), wide, transposed, unaligned):
        y = opened.graphs["first"]({"x": given})["y"]
        assert y.dtype == torch.float32
        np.testing.assert_allclose(y.cpu().numpy(), wanted, **TOLERANCE)


def test_outputs_are_fresh(opened):
    x = torch.from_numpy(rows(8)).cuda()
    first = opened.graphs["first"]({"x": x})["y"]
    kept = first.clone()
    opened.graphs["first"]({"x": -x})
    assert torch.equal(first, kept)


@pytest.mark.parametrize("cuda_graphs", [0, 2])
def test_work_is_queued_on_the_callers_stream(installed, cuda_graphs):
    engine = installed.open(cuda_graphs=cuda_graphs).graphs["next"]
    x = rows(256)
    wanted = torch.from_numpy(expected(installed, "next", x)).cuda()
    engine({"x": x})  # what is done once, such as compiling and recording
    torch.cuda.synchronize()
    for stream in (torch.cuda.Stream(), torch.cuda.Stream(), torch.cuda.default_stream()):
        with torch.cuda.stream(stream):
            late = torch.zeros(256, WIDTH, device="cuda")
            torch.cuda._sleep(200_000_000)  # a tenth of a second: who doesn't wait, reads zeros
            late.copy_(torch.from_numpy(x))
            y = engine({"x": late})["y"]
            late.zero_()  # after the engine has read it, if the order holds
            del late
            error = (y - wanted).abs().max()
        stream.synchronize()
        assert error.item() < 1e-3


def test_graphs_that_share_memory_answer_as_when_alone(installed, opened):
    inputs = {"first": rows(64, 1), "next": rows(512, 2)}
    answers = {name: [] for name in inputs}
    for name in (
        "first",
        "next",
        "first",
        "next",
        "next",
        "first",
    ):  # the memory grows at the second
        answers[name].append(opened.graphs[name]({"x": inputs[name]})["y"])
    for name, found in answers.items():
        wanted = expected(installed, name, inputs[name])
        for y in found:
            np.testing.assert_allclose(y.cpu().numpy(), wanted, **TOLERANCE)


def test_cuda_graphs_answer_as_launches_do(installed, opened):
    recorded = installed.open(cuda_graphs=2)
    for seed in range(3):
        for name, count in (("first", 4), ("first", 64), ("next", 512), ("first", 7), ("first", 4)):
            x = rows(count, seed)
            plain = opened.graphs[name]({"x": x})["y"]
            replayed = recorded.graphs[name]({"x": x})["y"]
            torch.testing.assert_close(replayed, plain, **TOLERANCE)


def test_only_so_many_cuda_graphs_are_kept(installed):
    plan = installed.open(cuda_graphs=2).graphs["first"]
    for count in (1, 2, 3, 2, 4):
        plan({"x": rows(count)})
    assert [shapes[0][0] for shapes in plan._recordings] == [2, 4]


@pytest.mark.parametrize("shape", [(0, WIDTH), (65, WIDTH), (4, WIDTH + 1), (4, WIDTH, 1)])
def test_shapes_outside_the_profile_are_refused(opened, shape):
    with pytest.raises(InvalidRequestError, match=r"vae_decoder/first: x is .* to \[64, 64\]"):
        opened.graphs["first"]({"x": torch.zeros(shape, device="cuda")})
    opened.graphs["first"]({"x": rows(4)})  # and the next request is served


def test_engines_for_another_gpu_are_refused(installed):
    with pytest.raises(
        EngineMismatchError, match=f"was built for sm70, and this GPU is {architecture()}"
    ):
        installed.open(device="sm70")


def test_a_plan_with_other_inputs_than_its_manifest_is_refused(installed):
    graphs = {k: replace(g, inputs={"z": ""}) for k, g in installed.manifest.graphs.items()}
    with pytest.raises(EngineMismatchError, match=r"takes \['x'\], its manifest says \['z'\]"):
        installed.open(graphs=graphs)


def test_a_damaged_plan_is_refused(installed):
    path = installed.folder / "damaged.plan"
    data = (installed.folder / "first.plan").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    graph = replace(installed.manifest.graphs["first"], file=path.name, size_bytes=len(data) // 2)
    with pytest.raises(
        EngineMismatchError, match=r"can't open .*damaged\.plan: .+\. The file is damaged"
    ):
        installed.open(graphs={"first": graph})


def test_a_closed_engine_leaves_nothing_on_the_gpu(installed):
    def used():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    before = used()
    opened = installed.open(cuda_graphs=2)
    opened.graphs["next"]({"x": rows(512)})
    del opened
    assert used() == before
