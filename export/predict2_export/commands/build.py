# SPDX-License-Identifier: Apache-2.0
"""`predict2-export build`: lower, verify and install every engine of a preset."""

import argparse
import math
import shlex
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset, Task, find_preset

from .level import add_level, fp8_choice
from .repository_flags import add_repository_flags, check_repository_flags

if TYPE_CHECKING:
    from predict2_export.recipes import PostTrained
    from predict2_export.torch_build import TorchChoices


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser("build", help="lower, verify and install every engine of a preset")
    add_repository_flags(parser, "build/served/PRESET")
    parser.add_argument(
        "--device", default="cpu", choices=["cpu", "cuda"], help="where to run (%(default)s)"
    )
    _add_kind(parser)
    add_post_trained(parser)
    add_level(parser)
    parser.set_defaults(run=run)


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind",
        default="onnxruntime",
        choices=["onnxruntime", "torch"],
        help="what runs the engines; with torch, ONNX Runtime still runs on the CPU what torch has no network for "
        "(%(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="of torch's engines (bfloat16 with --device cuda, else float32)",
    )
    parser.add_argument(
        "--cuda-graphs",
        "--cuda_graphs",
        type=int,
        default=0,
        metavar="N",
        help="how many shapes each graph of torch's engines records and replays (%(default)s)",
    )


def add_post_trained(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name weights other than the preset's."""
    parser.add_argument(
        "--dit-path",
        "--dit_path",
        action="append",
        default=[],
        metavar="[TASK=]FILE",
        help="post-trained weights in place of the preset's; TASK is text2image or video2world, "
        "by default the one that makes clips if the preset has it",
    )
    parser.add_argument(
        "--load-ema",
        "--load_ema",
        action="store_true",
        help="take the average that post-training keeps beside those weights",
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="[TASK=]FILE",
        help="a LoRA file or folder to add to a denoiser's weights",
    )
    parser.add_argument(
        "--lora-alpha",
        "--lora_alpha",
        type=float,
        help="what its training was given; by default what the adapter says, or else its rank",
    )


def by_task(preset: Preset, values: Sequence[str]) -> dict[Task, Path]:
    """FILEs by the task that a value names before "=", or by the preset's main one.

    Raises:
        InvalidRequestError: a task is named twice, or the preset has no network for it.
    """
    found: dict[Task, Path] = {}
    for value in values:
        name, _, file = value.rpartition("=")
        task: Task = (
            "text2image" if name == "text2image" or not preset.video2world else "video2world"
        )
        if name not in ("", task):
            raise InvalidRequestError(
                f"{value}: preset {preset.name} has no {name:.40} network; name one of its tasks, or none"
            )
        if task in found:
            raise InvalidRequestError(
                f"{value}: {task} was given {found[task]} already; choose one"
            )
        found[task] = Path(file)
    return found


def post_trained(args: argparse.Namespace, preset: Preset) -> "dict[Task, PostTrained]":
    """What those flags say, by task.

    Raises:
        InvalidRequestError: they don't fit the preset, or each other.
    """
    paths, adapters = by_task(preset, args.dit_path), by_task(preset, args.lora)
    if args.load_ema and not paths:
        raise InvalidRequestError("--load-ema says which weights of a --dit-path to take; name one")
    if args.lora_alpha is not None:
        _check_alpha(args.lora_alpha, paths or adapters)
    from predict2_export.recipes import PostTrained  # torch takes seconds to load

    return {
        task: PostTrained(
            paths.get(task), args.load_ema and task in paths, adapters.get(task), args.lora_alpha
        )
        for task in preset.tasks
        if task in paths or task in adapters
    }


def _check_alpha(alpha: float, given: "Collection[Task]") -> None:
    if not given:
        raise InvalidRequestError(
            "--lora-alpha says how much of a --lora to take, or of what training left in a --dit-path; name one"
        )
    if not math.isfinite(alpha):
        raise InvalidRequestError(f"--lora-alpha {alpha} must be a number")


def _torch_choices(args: argparse.Namespace, preset: Preset) -> "TorchChoices | None":
    """How the flags want torch's engines; None if all shall be ONNX Runtime's.

    Raises:
        InvalidRequestError: the flags contradict each other, or this machine can't do it.
    """
    if args.kind != "torch":
        if args.dtype or args.cuda_graphs:
            raise InvalidRequestError(
                "--dtype and --cuda-graphs are of --kind torch; add it, or leave them out"
            )
        return None
    if args.calibration or args.calibration_prompts or args.calibration_margin is not None:
        raise InvalidRequestError(
            "--kind torch finds scales while it computes; leave out --calibration and all that goes with it"
        )
    if args.cuda_graphs < 0:
        raise InvalidRequestError(f"--cuda-graphs {args.cuda_graphs} must be 0 or more")
    from predict2_export.torch_build import torch_choices  # torch takes seconds to load

    fp8 = fp8_choice(args, preset)
    layers = fp8.layers if fp8 else None
    return torch_choices(args.device, args.dtype or "", args.cuda_graphs, layers)


def run(args: argparse.Namespace) -> None:
    """Build, with a line of progress for every step."""
    preset = find_preset(args.preset)
    output = args.output or Path("build/served") / preset.name
    check_repository_flags(args)
    changed = post_trained(args, preset)
    choices = _torch_choices(args, preset)
    from predict2_export.build import build  # as well; --help shouldn't
    from predict2_export.to_onnx import quiet_exporter

    quiet_exporter()
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    build(
        preset,
        args.checkpoints,
        args.model_repository,
        output,
        report,
        only=args.only,
        device="cpu" if choices else args.device,
        post_trained=changed,
        trust_torchscript=args.trust_torchscript,
        guard_frames=not args.skip_guardrail_video,
        fp8=None if choices else fp8_choice(args, preset),
        torch_choices=choices,
    )
    if args.only:
        report(f"{args.only} is installed in {output}")
    else:
        report(f"{output} is ready: predict2-serve {shlex.quote(str(output))}")
