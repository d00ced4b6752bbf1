# SPDX-License-Identifier: Apache-2.0
"""`predict2-export plan`: what a task of a preset costs, before anything is downloaded."""

import argparse
import json
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from predict2_export.commands import traffic
from predict2_export.gpus import GPUS, find_gpu
from predict2_export.plan import Plan, Work, make_plan
from predict2_spec.presets import PRESETS, TASKS, find_preset
from predict2_spec.video import ASPECT_RATIOS

WIDTH = 120  # of the tables where the output is no terminal


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "plan",
        help="say what a task costs: work, seconds at least, memory, disk",
        description="What a task of a preset costs. Nothing is downloaded and no GPU is needed. "
        "Seconds are floors at the datasheet's peak rate: kernels reach some 80 %% of it at best.",
    )
    parser.add_argument("preset", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--task", choices=TASKS, help="the last that the preset serves")
    parser.add_argument("--gpu", default="H200", help=f"one of {', '.join(GPUS)} (%(default)s)")
    parser.add_argument(
        "--aspect-ratio",
        "--aspect_ratio",
        default="16:9",
        choices=ASPECT_RATIOS,
        help="(%(default)s)",
    )
    parser.add_argument(
        "--num-frames", type=int, default=0, help="of a clip, 1 + 4k (the preset's)"
    )
    parser.add_argument("--batch", type=int, default=1, help="samples made at once (%(default)s)")
    parser.add_argument(
        "--json", action="store_true", help="print JSON, in bytes, FLOPs and seconds"
    )
    traffic.add_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the plan."""
    if args.traffic:
        traffic.run(args)
        return
    preset = find_preset(args.preset)
    plan = make_plan(
        preset,
        find_gpu(args.gpu),
        args.task or preset.tasks[-1],
        aspect_ratio=args.aspect_ratio,
        num_frames=args.num_frames,
        batch=args.batch,
    )
    if args.json:
        print(json.dumps(as_json(plan), indent=2))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(f"{plan.preset}, {plan.task}, batch {plan.batch}, on one {plan.gpu.name}")
    for table in (_sizes, _networks, _work, _kinds, _memory, _host):
        console.print(table(plan))
    if plan.uncounted:
        console.print(
            f"{', '.join(plan.uncounted)} isn't counted anywhere: its layers are in its file alone"
        )


def as_json(plan: Plan) -> dict[str, Any]:
    """All of a plan as plain values: bytes, FLOPs and seconds."""
    rows = [
        asdict(work)
        | {
            "bf16_bytes": work.bf16_bytes,
            "fp8_bytes": work.fp8_bytes,
            "step_flops": work.step_flops,
            "flops": work.flops,
            "bf16_seconds": work.bf16_seconds(plan.gpu),
            "fp8_seconds": work.fp8_seconds(plan.gpu),
        }
        for work in plan.work
    ]
    memory = {
        "bf16": plan.memory.bf16,
        "fp8": plan.memory.fp8,
        "bf16_fits": plan.memory.bf16 <= plan.gpu.memory_bytes,
        "fp8_fits": plan.memory.fp8 <= plan.gpu.memory_bytes,
    }
    return asdict(plan) | {
        "work": rows,
        "memory": asdict(plan.memory) | memory,
        "flops": plan.flops,
        "bf16_seconds": plan.bf16_seconds,
        "fp8_seconds": plan.fp8_seconds,
    }


def _table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    return table


def _sizes(plan: Plan) -> Table:
    table = _table("Sizes", "", "frames, width x height", "latents T, h, w", "grid", "tokens")
    for size in plan.sizes:
        pixels, latent = size.pixels, size.latent
        table.add_row(
            size.of,
            f"{pixels.frames}, {pixels.width} x {pixels.height}",
            f"{latent.frames}, {latent.height}, {latent.width}",
            " x ".join(map(str, size.grid)),
            f"{size.tokens:,}",
        )
    return table


def _networks(plan: Plan) -> Table:
    table = _table("Networks", "stage", "parameters", "in bf16", "in fp8", "working memory")
    for stage, works in groupby(sorted(plan.work, key=_stage), key=_stage):
        work, *others = works
        table.add_row(
            stage,
            f"{work.parameters:,}",
            gigabytes(work.bf16_bytes),
            gigabytes(work.fp8_bytes) if work.small_bytes else "-",
            gigabytes(max(each.activation_bytes for each in (work, *others))),
        )
    return table


def _stage(work: Work) -> str:
    return work.stage


def _work(plan: Plan) -> Table:
    table = _table(
        f"Work in TFLOP, and the least seconds it takes a {plan.gpu.name}",
        *("stage", "of", "a pass", "a step", "passes", "in all", "s in bf16", "s with fp8"),
    )
    for work in plan.work:
        table.add_row(
            *(work.stage, work.of, teraflops(work.pass_flops), teraflops(work.step_flops)),
            *(str(work.passes), teraflops(work.flops)),
            *(seconds(work.bf16_seconds(plan.gpu)), seconds(work.fp8_seconds(plan.gpu))),
        )
    total = (teraflops(plan.flops), seconds(plan.bf16_seconds), seconds(plan.fp8_seconds))
    table.add_row("in all", *[""] * 4, *total)
    return table


def _kinds(plan: Plan) -> Table:
    kinds = ("linear", "self_attention", "cross_attention", "other")
    table = _table("A denoiser's pass in TFLOP", "of", *(kind.replace("_", " ") for kind in kinds))
    for work in plan.work:
        if work.by_kind:
            values = asdict(work.by_kind)
            table.add_row(work.of, *(teraflops(values[kind]) for kind in kinds))
    return table


def _memory(plan: Plan) -> Table:
    memory, gpu = plan.memory, plan.gpu
    columns = ("weights", "working", "reserved", "sum", f"of {gigabytes(gpu.memory_bytes)}")
    table = _table("GPU memory, all networks resident", "engines", *columns)
    rows = (("bf16", memory.bf16_weights, memory.bf16), ("fp8", memory.fp8_weights, memory.fp8))
    for name, weights, total in rows:
        shares = (weights, memory.activations, memory.reserved, total)
        fits = "fits" if total <= gpu.memory_bytes else "doesn't fit"
        table.add_row(name, *map(gigabytes, shares), fits)
    return table


def _host(plan: Plan) -> Table:
    host = plan.host
    table = _table("Disk and host memory, for the whole preset", "for", "disk", "host memory")
    for row in (
        ("fetch: checkpoints", host.checkpoints, None),
        ("with diffusers' text encoder", host.checkpoints_diffusers, None),
        ("export: ONNX in fp32", host.onnx_fp32, host.export_memory),
        ("export: ONNX in bf16", host.onnx_bf16, None),
        ("while exporting, besides", host.temporary, None),
        ("TensorRT engines in bf16", host.engines_bf16, host.engine_build_memory),
        ("TensorRT engines with fp8", host.engines_fp8, None),
    ):
        table.add_row(row[0], *("" if size is None else gigabytes(size) for size in row[1:]))
    return table


def gigabytes(count: int) -> str:
    """Bytes as GB, or as MB where they are few."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.2f} MB"


def teraflops(count: int) -> str:
    """FLOPs as TFLOP, with more digits where they are few."""
    value = count / 1e12
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def seconds(value: float) -> str:
    """Seconds with three digits."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"
