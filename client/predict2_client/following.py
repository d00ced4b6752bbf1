# SPDX-License-Identifier: Apache-2.0
"""`predict2 fetch`, `cancel` and `status`: requests that were sent before, and what the server is at."""

import argparse
from collections.abc import Callable

from predict2_spec.tracking import RequestState

from . import metrics, outputs, progress
from .client import Client
from .flags import connection
from .terminal import note, print_table

Say = Callable[[str], None]

_INTERRUPTED = 130


def run_fetch(args: argparse.Namespace, say: Say) -> int:
    """The result of a request as a file."""
    request_id = args.request_id
    try:
        with (
            Client(**connection(args)) as client,
            progress.shown(request_id, args.quiet) as on_event,
        ):
            result = client.fetch(request_id, on_event, args.timeout)
    except KeyboardInterrupt:
        note(f"request {request_id} wasn't cancelled; `predict2 cancel {request_id}` does that")
        return _INTERRUPTED
    path = outputs.fetched_path(args.save_path, request_id, result.metadata.media_type)
    outputs.prepare(path)
    outputs.save(path, result, None)
    if not args.quiet:
        say(str(path))
    return 0


def run_cancel(args: argparse.Namespace, say: Say) -> int:
    """Stop a request; code 1 where the server knows none of this id."""
    with Client(**connection(args)) as client:
        state = client.cancel(args.request_id)
    words = {
        "unknown": "isn't known; should it begin within the hour, it stops at once",
        "running": "stops within a solver step",
        "done": f"was finished before; `predict2 fetch {args.request_id}` brings its result",
        "failed": "had ended before",
    }
    say(f"request {args.request_id} {words[state.state]}")
    return 1 if state.state == "unknown" else 0


def run_status(args: argparse.Namespace, say: Say) -> int:
    """How far a request is, or what the server is at; code 1 where it is unknown or not ready."""
    with Client(**connection(args)) as client:
        if args.request_id:
            state = client.look(args.request_id)
            say(f"request {args.request_id}: {_in_words(state, args.request_id)}")
            return 1 if state.state == "unknown" else 0
        ready = client.is_ready()
    say(f"{args.url} is {'ready' if ready else 'not ready'}")
    address = metrics.metrics_address(args.metrics_url, args.url)
    samples = metrics.fetch_samples(address)
    if samples is None:
        note(f"no metrics at {address}; name their place with --metrics-url")
        return 0 if ready else 1
    for build in metrics.builds(samples):
        say(build)
    print_table(*metrics.table(samples))
    return 0 if ready else 1


def _in_words(state: RequestState, request_id: str) -> str:
    if state.failure:
        return f"{state.state}: {state.failure.message}"
    if state.state == "running":
        return f"running, {progress.in_words(state.event)}" if state.event else "running"
    if state.state == "done":
        return f"done; `predict2 fetch {request_id}` brings its result for {state.kept_s / 60:.0f} min yet"
    return "unknown: it hasn't begun, or its result is kept no longer"
