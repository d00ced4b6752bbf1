# SPDX-License-Identifier: Apache-2.0
"""Traces: when each request and each call it makes waited, computed and ended, written by Triton itself.

Only times are traced (Triton's level TIMESTAMPS); its level TENSORS would write prompts down.
"""

import argparse
from pathlib import Path
from urllib.parse import urlsplit

from predict2_spec.errors import ServerUnavailableError

SERVICE = "cosmos-predict2"  # as a collector shows it
# Traces in one file; Triton keeps them in memory until there are so many. A clip has some 45.
_TRACES_PER_FILE = 1000
_MAX_RATE = 1_000_000


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is traced, and to where."""
    traces = parser.add_argument_group("traces")
    traces.add_argument("--trace", metavar="WHERE", help="a file's name, which gets a number at its end, or the URL of an OpenTelemetry collector, such as http://127.0.0.1:4318/v1/traces")  # fmt: skip
    traces.add_argument("--trace-rate", type=_rate, default=1, metavar="N", help="trace one of N requests (%(default)s)")  # fmt: skip


def _rate(text: str) -> int:
    rate = int(text)
    if not 1 <= rate <= _MAX_RATE:
        raise argparse.ArgumentTypeError(f"{text} must be between 1 and {_MAX_RATE}")
    return rate


def trace_arguments(where: str | None, rate: int) -> list[str]:
    """What Triton is told to trace to a file or a collector; nothing without either.

    Raises:
        ServerUnavailableError: the file's folder isn't there, or the URL can't be a collector's.
    """
    if not where:
        return []
    if "," in where or any(c.isspace() for c in where):  # Triton's option ends there
        raise ServerUnavailableError(f"--trace {where!r} holds a comma or a space; name another")
    settings = ["level=TIMESTAMPS", f"rate={rate}"]
    if "://" in where:
        url = urlsplit(where)
        if url.scheme != "http" or not url.hostname:
            raise ServerUnavailableError(
                f"--trace {where} must be an OpenTelemetry collector's address over HTTP, such as "
                "http://127.0.0.1:4318/v1/traces"
            )
        to = f"{url.netloc}{url.path}"
        settings += ["mode=opentelemetry", f"opentelemetry,url={to}", f"opentelemetry,resource=service.name={SERVICE}"]  # fmt: skip
    else:
        file = Path(where).absolute()
        if not file.parent.is_dir():
            raise ServerUnavailableError(
                f"--trace {where}: folder {file.parent} isn't there; make it, or name another"
            )
        settings += ["mode=triton", f"triton,file={file}", f"triton,log-frequency={_TRACES_PER_FILE}"]  # fmt: skip
    return [word for setting in settings for word in ("--trace-config", setting)]
