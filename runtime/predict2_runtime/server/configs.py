# SPDX-License-Identifier: Apache-2.0
"""How much a server takes on: options, and a view of the repository whose configurations say so.

Triton reads queues and instances from each model's config.pbtxt. Installed files stay as they are: Triton is started
over a folder of links to them, with the few configurations that differ written anew.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2

from predict2_spec.admission import BATCH, INTERACTIVE, PUBLIC_MODELS, QUEUE_SIZE, REQUEST_TIMEOUT_S
from predict2_spec.errors import EngineMismatchError, InvalidRequestError, ServerUnavailableError
from predict2_spec.limits import LIMITS, parse_limit

CONFIG_FILE = "config.pbtxt"
MAX_QUEUE_SIZE, MAX_INSTANCES, MAX_TIMEOUT_S = 100_000, 256, 7 * 24 * 3600.0
_PUBLIC = {model.name for model in PUBLIC_MODELS}


@dataclass(frozen=True)
class Load:
    """What the owner wants otherwise than the installed configurations have it."""

    queue_size: int | None = None  # of each public model and priority
    request_timeout_s: float | None = None
    instances: Mapping[str, int] = field(default_factory=dict)  # of models by name


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The options that decide how much is taken on."""
    load = parser.add_argument_group("load")
    load.add_argument("--queue-size", type=_queue_size, metavar="N", help=f"requests that wait for a public model, of each priority, before others are told that it's busy ({QUEUE_SIZE})")  # fmt: skip
    load.add_argument("--instances", type=_instances, action="append", default=[], metavar="MODEL=N", help="processes of a model; of a public one: requests that run at once; repeatable")  # fmt: skip
    load.add_argument("--request-timeout", type=_seconds, metavar="S", help=f"seconds that a request may take at most, its waiting included; it can ask for less ({REQUEST_TIMEOUT_S:g})")  # fmt: skip
    names = ", ".join(f"{name} {value:,}" for name, value in vars(LIMITS).items())
    load.add_argument("--limit", type=_limit, action="append", default=[], metavar="NAME=VALUE", help=f"the most a request may ask for, such as num_steps=50 or media_bytes=64MB; repeatable. Defaults: {names}")  # fmt: skip


def load_from(args: argparse.Namespace) -> Load:
    """What the options say of queues, time and instances."""
    return Load(args.queue_size, args.request_timeout, dict(args.instances))


def _queue_size(text: str) -> int:
    return int(_between("queue size", text, 1, MAX_QUEUE_SIZE, int))


def _seconds(text: str) -> float:
    return _between("time limit", text, 1, MAX_TIMEOUT_S, float)


def _between(name: str, text: str, least: float, most: float, kind: type) -> float:
    try:
        number = float(kind(text))
    except ValueError:
        number = least - 1
    if not least <= number <= most:  # nor is NaN
        raise argparse.ArgumentTypeError(
            f"{name} {text!r:.40} must be {'a whole' if kind is int else 'a'} number from {least:g} to {most:g}"
        )
    return number


def _instances(text: str) -> tuple[str, int]:
    model, _, number = text.partition("=")
    return model, int(_between(f"instances of {model:.40}", number, 1, MAX_INSTANCES, int))


def _limit(text: str) -> tuple[str, int | float]:
    try:
        return parse_limit(text)
    except InvalidRequestError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def write_view(repository: Path, view: Path, load: Load) -> None:
    """Make `view` a folder that serves what `repository` holds, under the owner's load.

    Args:
        repository: as predict2-export made it; models are read through links to it.
        view: a folder that isn't there yet, and lives as long as the server.
        load: what is to differ.

    Raises:
        ServerUnavailableError: instances are asked for of a model that isn't there.
        EngineMismatchError: a configuration can't be read.
    """
    models = {path.parent.name for path in repository.glob(f"*/{CONFIG_FILE}")}
    unknown = sorted(set(load.instances) - models)
    if unknown:
        raise ServerUnavailableError(
            f"--instances {unknown[0]:.60}={load.instances[unknown[0]]}: {repository} has no such model; it has "
            f"{', '.join(sorted(models))}"
        )
    view.mkdir()
    for path in repository.resolve().iterdir():
        target = view / path.name
        config = _changed(path, load) if path.name in models else None
        if config is None:
            target.symlink_to(path)
            continue
        target.mkdir()
        for part in path.iterdir():
            if part.name != CONFIG_FILE:
                (target / part.name).symlink_to(part)
        (target / CONFIG_FILE).write_text(config)


def _changed(model: Path, load: Load) -> str | None:
    """A model's configuration under the load; None where it stays as it is."""
    public = model.name in _PUBLIC
    bounded = public and (load.queue_size is not None or load.request_timeout_s is not None)
    if not bounded and model.name not in load.instances:
        return None
    try:
        config = text_format.Parse(
            (model / CONFIG_FILE).read_text(), model_config_pb2.ModelConfig()
        )
    except (OSError, ValueError, text_format.ParseError) as error:
        raise EngineMismatchError(
            f"{model / CONFIG_FILE} can't be read ({error}); install the model again with predict2-export"
        ) from error
    if bounded:
        _bound(config.dynamic_batching, load)
    for group in config.instance_group:
        group.count = load.instances.get(model.name, group.count)
    return str(text_format.MessageToString(config))


def _bound(batching: Any, load: Load) -> None:
    """Put the load into a queue's configuration, which an older repository has not."""
    batching.priority_levels, batching.default_priority_level = BATCH, INTERACTIVE
    policy = batching.default_queue_policy
    policy.timeout_action, policy.allow_timeout_override = policy.REJECT, True
    policy.max_queue_size = load.queue_size or policy.max_queue_size or QUEUE_SIZE
    timeout_us = int((load.request_timeout_s or 0) * 1e6) or policy.default_timeout_microseconds
    policy.default_timeout_microseconds = timeout_us or int(REQUEST_TIMEOUT_S * 1e6)
