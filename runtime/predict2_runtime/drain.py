# SPDX-License-Identifier: Apache-2.0
"""Which requests are in progress, told through files between the model processes and whoever stops them.

Told to stop, Triton refuses at once what its running pipelines still ask of their stages. So the server is only told
when no pipeline runs any more, and pipelines take no new request from the moment it is to stop.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from predict2_spec.errors import ServerUnavailableError

RUN_FOLDER_VARIABLE = "PREDICT2_RUN_FOLDER"  # of the environment; set by predict2-serve
_STOPPING = "stopping"


def run_folder(environment: Mapping[str, str]) -> Path | None:
    """Where the processes of this server tell of what they do; None without predict2-serve."""
    folder = environment.get(RUN_FOLDER_VARIABLE)
    return Path(folder) if folder else None


@contextmanager
def in_progress(folder: Path | None) -> Iterator[None]:
    """Mark a request as running while the block runs; without a folder nobody asks.

    Raises:
        ServerUnavailableError: the server is to stop.
    """
    if folder is None:
        yield
        return
    mark = folder / f"request-{uuid4().hex}"
    with suppress(OSError):  # a full disk costs no request
        mark.touch()
    try:
        # After the mark, for whoever stops the server says so before he counts: one of both sees the other.
        if is_stopping(folder):
            raise ServerUnavailableError(
                "the server is stopping; send the request again when it is back"
            )
        yield
    finally:
        with suppress(OSError):
            mark.unlink()


def stop_taking(folder: Path) -> None:
    """Let no new request begin."""
    (folder / _STOPPING).touch()


def is_stopping(folder: Path | None) -> bool:
    """Whether no new request is to begin."""
    return folder is not None and (folder / _STOPPING).exists()


def count_running(folder: Path) -> int:
    """Requests in progress."""
    return sum(1 for _ in folder.glob("request-*"))
