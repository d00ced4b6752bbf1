# SPDX-License-Identifier: Apache-2.0
"""Every config.pbtxt says exactly what the contract says; a misspelt field fails to parse."""

from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from predict2_spec.admission import (
    BATCH,
    INTERACTIVE,
    PUBLIC_MODELS,
    QUEUE_SIZE,
    REQUEST_TIMEOUT_S,
)
from predict2_spec.tensors import MODELS

REPOSITORY = Path(__file__).parents[2] / "model_repository"
TYPES = {"BYTES": "TYPE_STRING"}


def read_config(name):
    text = (REPOSITORY / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def described(tensors, with_optional):
    return [
        (
            t.name,
            TYPES.get(t.dtype, f"TYPE_{t.dtype}"),
            list(t.dims),
            t.optional if with_optional else False,
        )
        for t in tensors
    ]


def configured(tensors):
    return [
        (
            t.name,
            model_config_pb2.DataType.Name(t.data_type),
            list(t.dims),
            getattr(t, "optional", False),
        )
        for t in tensors
    ]


def test_the_repository_holds_exactly_the_models_of_the_contract():
    assert sorted(p.name for p in REPOSITORY.iterdir() if p.is_dir()) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_config_agrees_with_the_contract(name):
    config, model = read_config(name), MODELS[name]
    assert config.name == name
    assert config.backend == "python"
    assert config.max_batch_size == 0
    assert configured(config.input) == described(model.inputs, with_optional=True)
    assert configured(config.output) == described(model.outputs, with_optional=False)
    assert config.model_transaction_policy.decoupled == model.decoupled


@pytest.mark.parametrize("name", [model.name for model in PUBLIC_MODELS])
def test_public_models_have_bounded_queues_of_two_priorities(name):
    batching = read_config(name).dynamic_batching
    assert batching.priority_levels == BATCH
    assert batching.default_priority_level == INTERACTIVE
    policy = batching.default_queue_policy
    assert policy.max_queue_size == QUEUE_SIZE
    assert policy.default_timeout_microseconds == REQUEST_TIMEOUT_S * 1e6
    assert policy.allow_timeout_override
    assert policy.timeout_action == policy.REJECT
    assert not batching.priority_queue_policy


@pytest.mark.parametrize("name", MODELS.keys() - {model.name for model in PUBLIC_MODELS})
def test_nothing_that_a_running_request_needs_can_refuse_it_for_being_full(name):
    assert not read_config(name).HasField("dynamic_batching")


@pytest.mark.parametrize("name", MODELS)
def test_model_files_are_thin(name):
    lines = (REPOSITORY / name / "1" / "model.py").read_text().splitlines()
    assert len(lines) <= 40
