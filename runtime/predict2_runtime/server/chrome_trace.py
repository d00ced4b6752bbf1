# SPDX-License-Identifier: Apache-2.0
"""Triton's trace files as one JSON file for chrome://tracing or ui.perfetto.dev.

    python -m predict2_runtime.server.chrome_trace trace.json.0 trace.json.1 > requests.json

Each request is a process, each model it called a row in it; what waited in a model's queue is a bar of its own.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from predict2_spec.errors import InvalidRequestError

Record = Mapping[str, Any]
_WAIT = ("QUEUE_START", "COMPUTE_START")
_WHOLE = ("REQUEST_START", "REQUEST_END")


def to_chrome(records: Iterable[Record]) -> dict[str, Any]:
    """Records of Triton's mode `triton` as Chrome's trace events, times in microseconds.

    A trace that has no end, since the server was stopped first, is left out.
    """
    about: dict[int, dict[str, Any]] = {}
    times: dict[int, dict[str, int]] = {}
    for record in records:
        trace = about.setdefault(record["id"], {})
        trace.update({k: v for k, v in record.items() if k != "timestamps"})
        for stamp in record.get("timestamps", ()):
            times.setdefault(record["id"], {})[stamp["name"]] = stamp["ns"]
    events = []
    for number, trace in about.items():
        root = _root(number, about)
        if number == root:
            name = f"{trace.get('model_name', '?')} {trace.get('request_id', '')}".strip()
            events.append({"ph": "M", "name": "process_name", "pid": root, "args": {"name": name}})
        for what, span in ((trace.get("model_name", "?"), _WHOLE), ("waits", _WAIT)):
            start, end = (times.get(number, {}).get(name) for name in span)
            if start is not None and end is not None:
                row = trace.get("model_name", "?")
                events.append({"ph": "X", "name": what, "pid": root, "tid": row, "ts": start / 1000, "dur": (end - start) / 1000})  # fmt: skip
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _root(number: int, about: Mapping[int, Record]) -> int:
    seen = set()
    while (parent := about.get(number, {}).get("parent_id")) and number not in seen:
        seen.add(number)
        number = parent
    return number


def read_traces(paths: Iterable[Path]) -> list[Record]:
    """The records of several files.

    Raises:
        InvalidRequestError: one isn't a trace file of Triton's.
    """
    found: list[Record] = []
    for path in paths:
        try:
            records = json.loads(path.read_text())
            if not all(isinstance(record["id"], int) for record in records):
                raise TypeError("an id is no number")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidRequestError(f"{path} is no trace file of Triton's ({error})") from error
        found += records
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files named on the command line to stdout as one; returns the exit code."""
    try:
        json.dump(to_chrome(read_traces(map(Path, sys.argv[1:] if argv is None else argv))), sys.stdout)  # fmt: skip
    except InvalidRequestError as error:
        sys.stderr.write(f"chrome_trace: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
