# SPDX-License-Identifier: Apache-2.0
"""What can be known to fail before Triton starts, said in plain words."""

import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from predict2_runtime.engines import read_manifest
from predict2_runtime.repository import VERSION_FOLDER, read_preset
from predict2_spec.errors import EngineMismatchError, ServerUnavailableError
from predict2_spec.presets import Preset
from predict2_spec.tensors import GUARDRAIL_VIDEO, served_stages

SHARED_MEMORY = Path("/dev/shm")
# Each Python model starts with a region of 1 MiB and grows it to its largest tensors.
MIN_SHARED_MEMORY = 64 * 1024 * 1024


def check_repository(repository: Path) -> Preset:
    """The preset; every stage must hold an engine of it, but for the frame guard, whose lack is the owner's matter.

    Raises:
        EngineMismatchError: the folder is missing or empty, an engine is missing or of another preset.
    """
    if not repository.is_dir() or not any(repository.iterdir()):
        state = "is empty" if repository.is_dir() else "does not exist"
        if repository.is_file():
            state = "is a file, not a folder"
        raise EngineMismatchError(
            f"repository {repository} {state}; make one with `predict2-export build --output {repository}`"
        )
    preset = read_preset(repository)
    for stage in served_stages(preset):
        folder = repository / stage.name
        if stage is GUARDRAIL_VIDEO and not folder.is_dir():
            continue
        found = read_manifest(folder / VERSION_FOLDER).preset
        if found != preset.name:
            raise EngineMismatchError(
                f"{folder} holds an engine of preset {found}, the repository is for {preset.name}; "
                "build it again with predict2-export"
            )
    return preset


def choose_ports(address: str, ports: Mapping[str, int]) -> dict[str, int]:
    """The ports to listen on: those given, and for each 0 one that nobody listens on now.

    Raises:
        ServerUnavailableError: one is taken or given twice, or the address is not this machine's.
    """
    chosen: dict[str, int] = {}
    with ExitStack() as held:  # until all are known: else two could be the same
        for name, port in sorted(ports.items(), key=lambda item: not item[1]):  # given ones first
            try:
                probe = held.enter_context(_listen(address, port))
            except OSError as error:
                raise ServerUnavailableError(
                    f"{name} {port} on {address} can't be used ({error.strerror}); "
                    f"stop what uses it or choose another with --{name}"
                    if port
                    else f"--address {address} can't be used ({error.strerror}); give one of this machine's"
                ) from error
            chosen[name] = probe.getsockname()[1]
    return chosen


def _listen(address: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        # Triton does so too: what just ended may be used again.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen()  # two that only are bound may share a port
    except OSError:
        probe.close()
        raise
    return probe


def check_command(command: Sequence[str]) -> None:
    """The command to run beside the server must be there.

    Raises:
        ServerUnavailableError: it isn't.
    """
    if command and shutil.which(command[0]) is None:
        raise ServerUnavailableError(f"command {command[0]} isn't found; the server isn't started")


def check_shared_memory() -> None:
    """Triton moves tensors between models through /dev/shm.

    Raises:
        ServerUnavailableError: there is none, or too little is free.
    """
    free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if free < MIN_SHARED_MEMORY:
        raise ServerUnavailableError(
            f"{SHARED_MEMORY} has {free // 2**20} MiB free; the server needs {MIN_SHARED_MEMORY // 2**20}. "
            "In a container, give it more (docker run --shm-size=1g, or a memory-backed volume)"
        )
