# SPDX-License-Identifier: Apache-2.0
"""`predict2-serve --check`: everything that a start would trip over, all of it at once, without starting."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from predict2_runtime.engines import check_engine
from predict2_runtime.repository import VERSION_FOLDER, read_preset
from predict2_spec.errors import Predict2Error, in_words
from predict2_spec.tensors import GUARDRAIL_VIDEO, Model, served_stages

from . import checks, owner
from .tracing import trace_arguments
from .tritonserver import find_tritonserver

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one check came to: what is there, or what is wrong and the way out."""

    status: Status
    what: str
    said: str

    def __str__(self) -> str:
        return f"{self.status:8}{self.what}: {self.said}"


def _try(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", what, check())
    except (Predict2Error, OSError) as error:
        return Finding("failed", what, " ".join(in_words(error).split()))


def inspect(args: argparse.Namespace) -> Iterator[Finding]:
    """What a start with these options would find; the first `failed` would end it."""
    yield _try("tritonserver", _triton)
    yield _try("shared memory", _shared_memory)
    yield _try("ports", lambda: _ports(args))
    if args.command:
        yield _try("command", lambda: _command(args))
    if args.trace:
        yield _try("traces", lambda: _traces(args))
    repository: Path = args.repository
    whole = _try("repository", lambda: f"preset {checks.check_repository(repository).name}")
    yield whole
    try:
        preset = read_preset(repository)
    except Predict2Error:
        return  # said already; without a preset nobody knows what belongs there
    for stage in served_stages(preset):
        folder = repository / stage.name / VERSION_FOLDER
        if stage is GUARDRAIL_VIDEO and not folder.is_dir():
            yield Finding("warning", f"engine {stage.name}", "there is none, so frames aren't guarded; build it from the fetched guardrails")  # fmt: skip
        else:
            yield _try(f"engine {stage.name}", lambda s=stage, f=folder: _engine(s, f))  # type: ignore[misc]
    yield _try("policy", lambda: owner.describe(owner.policy_from(args, preset, repository)))


def _triton() -> str:
    with tempfile.TemporaryDirectory(prefix="predict2-check-") as folder:
        return str(find_tritonserver(Path(folder)).binary)


def _shared_memory() -> str:
    checks.check_shared_memory()
    return f"{checks.SHARED_MEMORY} has room"


def _ports(args: argparse.Namespace) -> str:
    ports = {"http-port": args.http_port, "grpc-port": args.grpc_port, "metrics-port": args.metrics_port}  # fmt: skip
    chosen = {name: port for name, port in ports.items() if port}
    checks.choose_ports(args.address, chosen)
    named = ", ".join(f"{name} {port}" for name, port in chosen.items())
    return f"{named or 'any'} free on {args.address}"


def _command(args: argparse.Namespace) -> str:
    checks.check_command(args.command)
    return str(args.command[0])


def _traces(args: argparse.Namespace) -> str:
    trace_arguments(args.trace, args.trace_rate)
    return f"one of {args.trace_rate} to {args.trace}"


def _engine(stage: Model, folder: Path) -> str:
    found = check_engine(folder, stage.name)
    size = sum(graph.size_bytes + graph.data_size_bytes for graph in found.graphs.values())
    return f"{found.kind} {found.precision} for {found.device}, {size / 1e6:.1f} MB, of preset {found.preset}"
