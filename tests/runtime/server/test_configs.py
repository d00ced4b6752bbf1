# SPDX-License-Identifier: Apache-2.0
"""The view that Triton is started over, made of the configurations that ship."""

import argparse
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from predict2_runtime.server import configs
from predict2_runtime.server.configs import Load, write_view
from predict2_spec.admission import PUBLIC_MODELS, QUEUE_SIZE, REQUEST_TIMEOUT_S
from predict2_spec.errors import EngineMismatchError, ServerUnavailableError

SHIPPED = Path(__file__).parents[3] / "model_repository"
PUBLIC = [model.name for model in PUBLIC_MODELS]


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "served"
    shutil.copytree(SHIPPED, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "repository.json").write_text("{}")
    return folder


@pytest.fixture
def view(repository, tmp_path):
    """view(load) -> the folder made for it."""

    def view(load):
        folder = tmp_path / "view"
        write_view(repository, folder, load)
        return folder

    return view


def read(folder, model):
    text = (folder / model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def content(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.glob("**/*")
        if path.is_file()
    }


def everything(folder):
    """Also below links to folders, which glob doesn't enter."""
    return {
        part.relative_to(folder): part.read_bytes()
        for model in folder.iterdir()
        for part in ([model] if model.is_file() else [*model.glob("*"), *model.glob("1/*")])
        if part.is_file()
    }


def test_without_options_all_is_served_as_installed(repository, view):
    assert everything(view(Load())) == everything(repository)


def test_queues_of_public_models_get_the_owners_size_and_nothing_else_changes(repository, view):
    before = content(repository)
    folder = view(Load(queue_size=3))
    for name in PUBLIC:
        expected = read(repository, name)
        expected.dynamic_batching.default_queue_policy.max_queue_size = 3
        assert read(folder, name) == expected
    changed = {Path(name) / "config.pbtxt" for name in PUBLIC}
    served, installed = everything(folder), everything(repository)
    assert served.keys() == installed.keys()
    assert {path for path in served if served[path] != installed[path]} == changed
    assert content(repository) == before


def test_the_time_limit_reaches_triton_in_microseconds(view):
    folder = view(Load(request_timeout_s=1.5))
    for name in PUBLIC:
        policy = read(folder, name).dynamic_batching.default_queue_policy
        assert policy.default_timeout_microseconds == 1_500_000
        assert policy.max_queue_size == QUEUE_SIZE


def test_instances_are_those_of_the_named_model(repository, view):
    folder = view(Load(instances={"vae_decoder": 3, "generate": 7}))
    assert read(folder, "vae_decoder").instance_group[0].count == 3
    assert read(folder, "generate").instance_group[0].count == 7
    assert (
        read(folder, "generate").dynamic_batching == read(repository, "generate").dynamic_batching
    )
    assert (folder / "vae_encoder").is_symlink()


def test_a_size_that_the_owner_wrote_into_a_file_stays_his(repository, view):
    file = repository / "generate" / "config.pbtxt"
    file.write_text(file.read_text().replace("max_queue_size: 16", "max_queue_size: 99"))
    folder = view(Load(request_timeout_s=5))
    assert read(folder, "generate").dynamic_batching.default_queue_policy.max_queue_size == 99


def test_a_repository_from_before_queues_gets_whole_ones(repository, view):
    file = repository / "text2image" / "config.pbtxt"
    file.write_text(file.read_text().split("# Each priority")[0])
    assert not read(repository, "text2image").HasField("dynamic_batching")
    made = read(view(Load(queue_size=5)), "text2image").dynamic_batching
    expected = read(SHIPPED, "text2image").dynamic_batching
    expected.default_queue_policy.max_queue_size = 5
    assert made == expected
    assert made.default_queue_policy.default_timeout_microseconds == REQUEST_TIMEOUT_S * 1e6


def test_instances_of_a_model_that_is_not_there_are_refused(view):
    with pytest.raises(
        ServerUnavailableError, match=r"--instances vae=2: .* it has best_of_n, cri"
    ):
        view(Load(instances={"vae": 2}))


def test_a_configuration_that_cannot_be_read_is_named(repository, view):
    (repository / "generate" / "config.pbtxt").write_text("nonsense {")
    with pytest.raises(EngineMismatchError, match=r"generate/config\.pbtxt can't be read"):
        view(Load(queue_size=1))


def parse(*flags):
    parser = argparse.ArgumentParser()
    configs.add_flags(parser)
    return parser.parse_args(flags)


def test_options_become_a_load():
    flags = ["--queue-size=4", "--request-timeout=90", "--instances=generate=8"]
    args = parse(*flags, "--instances", "vae_decoder=2")
    assert configs.load_from(args) == Load(4, 90.0, {"generate": 8, "vae_decoder": 2})
    assert configs.load_from(parse()) == Load()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--queue-size", "0"], "queue size '0' must be a whole number from 1 to 100000"),
        (["--queue-size", "2.5"], "queue size '2.5' must be a whole number"),
        (["--request-timeout", "nan"], "time limit 'nan' must be a number from 1 to 604800"),
        (["--request-timeout", "0"], "time limit '0' must be"),
        (["--instances", "generate"], "instances of generate '' must be a whole number from 1"),
        (["--instances", "generate=0"], "instances of generate '0' must be"),
        (["--limit", "num_step=4"], "must be NAME=VALUE, with a NAME of prompt_bytes, num_steps"),
        (["--limit", "num_steps=lots"], "limit num_steps: 'lots' must be a whole number"),
    ],
)
def test_options_outside_their_range_are_refused_in_words(flags, message, capsys):
    with pytest.raises(SystemExit):
        parse(*flags)
    assert message in capsys.readouterr().err


def test_the_help_names_every_limit_with_its_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "num_steps 100" in text
    assert "media_seconds 3,600.0" in text
