# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import Graph, Manifest, Range, Verification
from predict2_spec.results import Event, Metadata

MANIFEST = Manifest(
    network="vae_decoder",
    preset="toy",
    kind="onnxruntime",
    precision="fp32",
    device="cpu",
    checkpoint_sha256="ab",
    recipe="cd",
    versions={"onnx": "1"},
    graphs={"first": Graph("first.onnx", "ef", 3, {"latents": "FLOAT [1]"}, {})},
    verification={"first": Verification(0.999, 0.99, 1e-5, 1e-3, {"torch": (0.998, 2e-5)})},
)


def test_a_manifest_survives_its_file():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


PLAN = replace(
    MANIFEST,
    kind="tensorrt",
    device="sm90",
    versions={"tensorrt": "10.13.3.9"},
    graphs={"first": Graph("first.plan", "", 3, {}, {}, profile={"x": Range((1,), (2,), (4,))})},
    plugins={"Predict2QkNormRope": "1"},
    weights="refittable",
    cuda_graphs=2,
)


def test_a_plans_manifest_survives_its_file():
    assert Manifest.from_json(PLAN.to_json()) == PLAN


def test_a_manifest_from_before_plans_is_read():
    values = json.loads(MANIFEST.to_json())
    for name in ("plugins", "plugins_inside", "weights", "version_compatible", "cuda_graphs"):
        del values[name]
    del values["graphs"]["first"]["profile"]
    assert Manifest.from_json(json.dumps(values)) == MANIFEST


def test_a_profile_that_lacks_a_bound_is_damage():
    values = json.loads(PLAN.to_json())
    del values["graphs"]["first"]["profile"]["x"]["opt"]
    with pytest.raises(EngineMismatchError, match=r"manifest.json is damaged \(.* 'opt'\)"):
        Manifest.from_json(json.dumps(values))


@pytest.mark.parametrize("file", ["../../first.onnx", "/etc/passwd", "..", "1/first.onnx", "."])
@pytest.mark.parametrize("which", ["file", "data_file"])
def test_a_file_that_is_not_beside_the_manifest_is_refused(which, file):
    graph = replace(MANIFEST.graphs["first"], **{which: file})
    text = replace(MANIFEST, graphs={"first": graph}).to_json()
    with pytest.raises(EngineMismatchError, match=r"is damaged \('.*' isn't a file beside it\)"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("versions", None),
        ("versions tensorrt", 10),
        ("plugins", ["Predict2QkNormRope"]),
        ("cuda_graphs", "2"),
        ("cuda_graphs", True),
        ("weights", "gone"),
        ("kind", ["tensorrt"]),
        ("verification", []),
        ("graphs first", None),
        ("graphs first file", 5),
        ("graphs first size_bytes", "3"),
        ("graphs first size_bytes", 3.0),
        ("graphs first inputs", ["x"]),
        ("graphs first profile x", []),
        ("graphs first profile x max", "44"),
        ("graphs first profile x max", [float("inf")]),
        ("graphs first profile x max", [4, 4]),
        ("graphs first profile x min", [-1]),
        ("graphs first profile x min", [3]),
        ("surplus", 1),
    ],
)
def test_a_value_of_another_type_or_beyond_reason_is_damage(path, value):
    values = json.loads(PLAN.to_json())
    inner = values
    *outer, last = path.split()
    for name in outer:
        inner = inner[name]
    inner[last] = value
    with pytest.raises(EngineMismatchError, match=r"manifest.json is damaged \(.*build the"):
        Manifest.from_json(json.dumps(values))


def test_a_manifest_of_nothing_but_brackets_is_damage():
    with pytest.raises(EngineMismatchError, match=r"manifest.json is damaged"):
        Manifest.from_json("[" * 200_000)


def test_an_engine_names_the_command_that_builds_it_again():
    assert MANIFEST.rebuild_command == "predict2-export build --preset toy --only vae_decoder"
    assert PLAN.rebuild_command == (
        "predict2-export engine --preset toy --only vae_decoder --flavour tensorrt"
    )


@pytest.mark.parametrize("text", ["", "[]", "null", '{"format": 1}', '{"format": 1, "graphs": 3}'])
def test_a_damaged_manifest_says_to_build_again(text):
    with pytest.raises(
        EngineMismatchError, match=r"manifest.json is damaged .* build the engine again"
    ):
        Manifest.from_json(text)


def test_a_manifest_of_another_format_is_refused():
    text = MANIFEST.to_json().replace('"format": 1', '"format": 99')
    with pytest.raises(EngineMismatchError, match="format 99 was found, this software reads 1"):
        Manifest.from_json(text)


def test_events_and_metadata_ignore_what_a_newer_server_adds():
    event = Event("denoise_image", 3, 36, 1.25)
    assert Event.from_json(event.to_json()[:-1] + ', "eta": 3}') == event
    with pytest.raises(TypeError):
        Metadata.from_json("{}")


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        (
            {"kind": "torch", "precision": "bf16", "device": "sm90"},
            "build --preset toy --only vae_decoder --kind torch --device cuda --dtype bfloat16",
        ),
        ({"kind": "torch"}, "build --preset toy --only vae_decoder --kind torch --dtype float32"),
    ],
)  # fmt: skip
def test_an_engine_of_torch_names_the_flags_it_was_built_with(changes, command):
    assert replace(MANIFEST, **changes).rebuild_command == f"predict2-export {command}"
