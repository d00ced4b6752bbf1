# SPDX-License-Identifier: Apache-2.0
import os
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from predict2_export.cli import main
from predict2_export.installation import write_manifest
from predict2_export.native_model import install_native
from predict2_spec.errors import InvalidRequestError
from predict2_spec.manifest import Graph, Manifest, Range

MANIFEST = Manifest(
    network="text_encoder",
    preset="2b-480p-16fps",
    kind="tensorrt",
    precision="bf16",
    device="sm90",
    checkpoint_sha256="",
    recipe="",
    versions={"tensorrt": "11.1.0.106"},
    graphs={
        "main": Graph(
            file="main.plan",
            sha256="",
            size_bytes=4,
            inputs={"input_ids": "INT64 [batch, 512]", "attention_mask": "INT64 [batch, 512]"},
            outputs={"prompt_embeds": "BFLOAT16 [batch, 512, 1024]"},
            profile={
                "input_ids": Range((1, 512), (2, 512), (8, 512)),
                "attention_mask": Range((1, 512), (2, 512), (8, 512)),
            },
        )
    },
)


def installed(folder, manifest):
    engine = folder / manifest.network / "1"
    engine.mkdir(parents=True)
    (engine / "main.plan").write_bytes(b"plan")
    write_manifest(engine, manifest)
    return folder


def parsed(folder):
    text = (folder / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_a_text_encoder_becomes_a_model_of_tritons_own_backend(tmp_path):
    folder = install_native(installed(tmp_path, MANIFEST), "text_encoder")
    config = parsed(folder)
    assert folder.name == config.name == "text_encoder_plan"
    assert (config.platform, config.max_batch_size) == ("tensorrt_plan", 8)
    assert config.HasField("dynamic_batching")
    inputs = {t.name: (t.data_type, list(t.dims)) for t in config.input}
    row = model_config_pb2.TYPE_INT64, [512]
    assert inputs == {"input_ids": row, "attention_mask": row}
    (output,) = config.output
    assert (output.name, output.data_type) == ("prompt_embeds", model_config_pb2.TYPE_BF16)
    assert list(output.dims) == [512, 1024]
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"
    assert (folder / "1" / "model.plan").stat().st_nlink == 2  # not a second copy on disk


def test_free_dims_are_free_in_the_configuration(tmp_path):
    graph = Graph(
        file="main.plan",
        sha256="",
        size_bytes=4,
        inputs={"hidden_states": "BFLOAT16 [batch, 16, frames, 2*rows, 2*columns]"},
        outputs={"velocity": "BFLOAT16 [batch, 16, frames, 2*rows, 2*columns]"},
        profile={"hidden_states": Range((1, 16, 1, 4, 4), (2, 16, 4, 8, 8), (2, 16, 4, 8, 8))},
    )
    manifest = replace(MANIFEST, network="text2image_denoiser", graphs={"main": graph})
    config = parsed(install_native(installed(tmp_path, manifest), "text2image_denoiser"))
    assert list(config.input[0].dims) == [16, -1, -1, -1]
    assert config.max_batch_size == 2


def test_a_plan_is_copied_where_nothing_can_be_linked(tmp_path, monkeypatch):
    def refused(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    monkeypatch.delattr(Path, "read_bytes")  # it may be larger than memory
    folder = install_native(installed(tmp_path, MANIFEST), "text_encoder")
    monkeypatch.undo()
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"


def test_installing_again_replaces_the_model(tmp_path):
    repository = installed(tmp_path, MANIFEST)
    folder = install_native(repository, "text_encoder")
    (folder / "1" / "stale").touch()
    assert sorted(p.name for p in (install_native(repository, "text_encoder") / "1").iterdir()) == [
        "model.plan"
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "onnxruntime"}, "is an engine of onnxruntime"),
        ({"kind": "tensorrt_rtx"}, "is an engine of tensorrt_rtx"),
        ({"weights": "stripped"}, "built without its weights"),
        ({"graphs": {**MANIFEST.graphs, "next": MANIFEST.graphs["main"]}}, "has 2 graphs"),
    ],
)
def test_what_the_backend_cannot_run_is_refused(tmp_path, changes, reason):
    repository = installed(tmp_path, replace(MANIFEST, **changes))
    with pytest.raises(InvalidRequestError, match=reason):
        install_native(repository, "text_encoder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["text_encoder"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ["one without no longer starts"]),
        ({"plugins": {"Predict2Modulate": "1"}}, ["it needs Predict2Modulate: docs/tensorrt.md"]),
        (
            {
                "plugins": {"Predict2Modulate": "1"},
                "plugins_inside": True,
                "version_compatible": True,
            },
            ["--backend-config=tensorrt,version-compatible=true"],
        ),
    ],
)
def test_the_command_says_what_a_server_needs(tmp_path, capsys, changes, told):
    repository = installed(tmp_path, replace(MANIFEST, **changes))
    assert main(["native", str(repository)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{repository / 'text_encoder_plan'} is there" in lines[0]
    assert all(any(part in line for line in lines) for part in told)
    assert ("it needs" in "".join(lines)) == (set(changes) == {"plugins"})
