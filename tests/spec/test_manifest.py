# SPDX-License-Identifier: Apache-2.0
import pytest

from predict2_spec.errors import EngineMismatchError
from predict2_spec.manifest import Graph, Manifest, Verification
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
