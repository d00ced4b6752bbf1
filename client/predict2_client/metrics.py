# SPDX-License-Identifier: Apache-2.0
"""What a server's metrics endpoint says, in Prometheus' text format."""

import http.client
import re
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from predict2_spec.admission import PUBLIC_MODELS
from predict2_spec.errors import InvalidRequestError

_PORT = 8002  # predict2-serve's default
_TIMEOUT_S = 3.0
_MAX_BYTES = 8 * 1024 * 1024
_LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? +(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line of it."""

    name: str
    labels: Mapping[str, str]
    value: float


def metrics_address(given: str, url: str) -> str:
    """Where the metrics of the server at `url` are, as far as one can tell; host:port and whole addresses both do.

    Raises:
        InvalidRequestError: what is given is neither.
    """
    address = given or f"{url.rpartition(':')[0]}:{_PORT}"
    if "://" not in address:
        address = f"http://{address}/metrics"
    if not re.match(r"https?://[^/\s]+", address):
        raise InvalidRequestError(
            f"metrics url {given!r:.100} must be host:port or an http address"
        )
    return address


def fetch_samples(address: str) -> list[Sample] | None:
    """All samples; None where nobody answers."""
    # A machine's http_proxy is hardly for its own servers.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_MAX_BYTES).decode(errors="replace")
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return list(read_samples(text))


def read_samples(text: str) -> Iterator[Sample]:
    """The samples of a text; a line that is none is left out."""
    for line in text.splitlines():
        if found := _LINE.match(line):
            name, labels, value = found.groups()
            try:
                yield Sample(name, dict(_LABEL.findall(labels or "")), float(value))
            except ValueError:
                continue


def builds(samples: Sequence[Sample]) -> list[str]:
    """What is served, by which version."""
    lines = {
        f"preset {s.labels.get('preset', '?')}, version {s.labels.get('version', '?')}"
        for s in samples
        if s.name == "predict2_build_info"
    }
    return sorted(lines)


def table(samples: Sequence[Sample]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: of each public model how many requests wait, run and ended, and how."""

    def total(name: str, model: str, **labels: str) -> float:
        wanted = {"model": model, **labels}.items()
        return sum(s.value for s in samples if s.name == name and wanted <= s.labels.items())

    def row(model: str) -> list[str]:
        waiting = total("nv_inference_pending_request_count", model)
        ended = {
            outcome: count
            for outcome in sorted({s.labels["outcome"] for s in samples if "outcome" in s.labels})
            if (count := total("predict2_requests_total", model, outcome=outcome))
        }
        numbers = (waiting, total("predict2_running", model), ended.pop("ok", 0.0))
        failed = f"{ended.pop('failed', 0.0):g}"
        rest = ", ".join(f"{count:g} {outcome}" for outcome, count in ended.items())
        return [model, *(f"{number:g}" for number in numbers), failed, rest]

    served = {s.labels.get("model") for s in samples}
    heads = ["model", "waiting", "running", "succeeded", "failed", "ended otherwise"]
    return heads, [row(model.name) for model in PUBLIC_MODELS if model.name in served]
