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
    with pytest.raises(EngineMismatchError, match=r"manifest.json is damaged \('opt'\)"):
        Manifest.from_json(json.dumps(values))


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
