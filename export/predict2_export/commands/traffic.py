# SPDX-License-Identifier: Apache-2.0
"""`predict2-export plan --traffic`: how many GPUs a traffic of requests needs."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from predict2_export import traffic as traffics
from predict2_export.gpus import find_gpu
from predict2_export.traffic import Balance, Duration, Level, Measure, Service, Stream, Traffic
from predict2_export.wait_plot import plot
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset, Task, find_preset


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add what says how much is asked for, and what is wanted."""
    group = parser.add_argument_group(
        "how many GPUs",
        "Requests come at random; each takes the seconds that were measured or, where nothing was, the floor.",
    )
    group.add_argument(
        "--traffic", metavar="TASK=N,...", help="requests an hour, such as video2world=30,text2image=120"
    )  # fmt: skip
    group.add_argument(
        "--target-wait", type=float, default=60.0, metavar="S", help="seconds before the work begins (%(default)s)"
    )  # fmt: skip
    group.add_argument(
        "--target-of", choices=("mean", "p95"), default="p95", help="of all requests, or of 95 in 100 (%(default)s)"
    )  # fmt: skip
    group.add_argument(
        "--balance",
        choices=("random", "idle"),
        default="random",
        help="random: a queue a server, as behind a proxy; idle: one queue for all, the best there can be (%(default)s)",
    )
    group.add_argument("--results", type=Path, help="a file of benchmarks/results to take seconds from")  # fmt: skip
    group.add_argument("--level", choices=("exact", "fp8"), default="exact", help="(%(default)s)")
    group.add_argument("--price", type=float, metavar="P", help="of a GPU for an hour, in any money")  # fmt: skip
    group.add_argument("--plot", type=Path, metavar="SVG", help="write the wait against GPUs here")


def run(args: argparse.Namespace) -> None:
    """Print how many it takes."""
    if not 0 <= args.target_wait < float("inf"):
        raise InvalidRequestError(f"target wait {args.target_wait} must be 0 seconds or more")
    traffic = _traffic(find_preset(args.preset), args)
    measure: Measure = args.target_of
    balance: Balance = args.balance
    chosen = traffics.gpus_needed(traffic, args.target_wait, measure, balance)
    services = traffics.around(traffic, chosen.gpus, balance)
    if args.plot:
        title = f"{args.preset}: wait in a queue, {_basis(traffic)}"
        args.plot.write_text(plot(title, services, args.target_wait, chosen.gpus))
    if args.json:
        print(json.dumps(_as_json(traffic, chosen, services, args), indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(_streams(traffic))
    console.print(_services(services, chosen, args.price))
    console.print(_answer(traffic, chosen, args))


def _traffic(preset: Preset, args: argparse.Namespace) -> Traffic:
    level: Level = args.level
    results = _read_results(args.results) if args.results else []
    gpu = find_gpu(args.gpu)

    def duration(task: Task) -> Duration:
        floor = traffics.floor_duration(preset, gpu, task, level)  # refuses what isn't served
        return traffics.measured_duration(results, preset.name, task, level) or floor

    rates = traffics.parse_traffic(args.traffic)
    return Traffic(tuple(Stream(task, rate, duration(task)) for task, rate in rates.items()))


def _read_results(path: Path) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"results {path} can't be read: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise InvalidRequestError(f"results {path} must hold a JSON object a line")
    return lines


def _basis(traffic: Traffic) -> str:
    measured = [stream.duration.measured for stream in traffic.streams]
    if all(measured):
        return "from measured seconds"
    return "partly from floors" if any(measured) else "from floors, nothing is measured"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _streams(traffic: Traffic) -> Table:
    table = _table("task", "requests an hour", "seconds each", "which are")
    for s in traffic.streams:
        table.add_row(s.task, f"{s.per_hour:g}", f"{s.duration.seconds:.3g}", s.duration.source)
    return table


def _services(services: list[Service], chosen: Service, price: float | None) -> Table:
    table = _table("GPUs", "busy", "mean wait, s", "p95 wait, s", "waiting", "price an hour", "")
    for s in services:
        cost = "" if price is None else f"{price * s.gpus:,.2f}"
        row = (f"{s.gpus}", f"{s.utilisation:.0%}", f"{s.mean_wait_s:.3g}", f"{s.p95_wait_s:.3g}")
        table.add_row(*row, f"{s.mean_waiting:.2g}", cost, "<" if s.gpus == chosen.gpus else "")
    return table


def _answer(traffic: Traffic, chosen: Service, args: argparse.Namespace) -> str:
    answer = (
        f"{chosen.gpus} GPUs keep the {args.target_of} wait within {args.target_wait:g} s ({_basis(traffic)}). "
        f"The work alone is {traffic.busy_gpus:.2f} GPUs."
    )
    if args.balance == "random":
        best = traffics.gpus_needed(traffic, args.target_wait, args.target_of, "idle")
        answer += f" With one queue for all, {best.gpus} would do."
    if not all(stream.duration.measured for stream in traffic.streams):
        answer += " No engine is as quick as a floor, so plan for more; with --results it is what was measured."
    return answer


def _as_json(
    traffic: Traffic, chosen: Service, services: list[Service], args: argparse.Namespace
) -> dict[str, Any]:
    return {
        "preset": args.preset,
        "balance": args.balance,
        "streams": [asdict(stream) for stream in traffic.streams],
        "busy_gpus": traffic.busy_gpus,
        "basis": _basis(traffic),
        "chosen": asdict(chosen),
        "price_an_hour": None if args.price is None else args.price * chosen.gpus,
        "services": [asdict(service) for service in services],
    }
