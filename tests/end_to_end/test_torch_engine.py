# SPDX-License-Identifier: Apache-2.0
"""A server whose denoiser is an engine of torch, on the CPU, with all else as it was."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from predict2_client import Client
from predict2_export.cli import main

pytestmark = pytest.mark.server

STAGE = "text2image_denoiser"


@pytest.fixture
def torch_repository(slim_repository, tmp_path):
    """The repository with that stage built again, from the same weights."""
    repository = tmp_path / "toy"
    shutil.copytree(slim_repository, repository, symlinks=True)
    (repository / STAGE).unlink()  # it leads to the one that others use
    built = (slim_repository / STAGE).resolve().parents[1] / "checkpoints"
    assert built.is_dir()
    argv = ["build", "--kind", "torch", "--only", STAGE, "--checkpoints", str(built)]
    assert main([*argv, "--output", str(repository)]) == 0
    return repository


def picture(url):
    with Client(url) as client:
        result = client.text2image("a red ball", seed=3, num_steps=12, timeout_s=60)
    assert result.metadata.precision == "fp32"
    return np.asarray(Image.open(io.BytesIO(result.media))).astype(float)


def test_pictures_are_those_of_the_onnxruntime_engine(server, start_server, torch_repository):
    serve = start_server(torch_repository).wait_until_ready()
    assert '"kind": "torch"' in (torch_repository / STAGE / "1" / "manifest.json").read_text()
    found, expected = picture(serve.url), picture(server.url)
    assert expected.std() > 5
    # The last bits of float32 differ, and JPEG rounds some pixels the other way.
    assert np.abs(found - expected).mean() < 0.1
    assert serve.stop() == 0
