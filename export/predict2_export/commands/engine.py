# SPDX-License-Identifier: Apache-2.0
"""`predict2-export engine`: lower and build every engine of a preset as plans of TensorRT, and install them."""

import argparse
import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predict2_runtime.engines.bindings import FLAVOURS, bindings, major
from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import Preset, find_preset

from .build import add_post_trained, post_trained
from .level import add_level, fp8_choice
from .onnx import DTYPES
from .repository_flags import add_repository_flags, check_repository_flags

if TYPE_CHECKING:
    from predict2_export.build_options import BuildOptions
    from predict2_export.recipes import Recipe

_GIB = 2**30
_MOST_GIB = 2**20  # that a workspace can be asked to have
_PLUGINS = ("load", "serialize", "none")
_EXTENTS = ("any", "table")


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "engine",
        help="lower and build every engine of a preset as plans of TensorRT, and install them",
    )
    add_repository_flags(parser, "build/served/PRESET-FLAVOUR")
    parser.add_argument(
        "--flavour",
        default="tensorrt",
        choices=FLAVOURS,
        help="tensorrt builds for the GPU that is there; tensorrt_rtx for RTX GPUs, and needs none (%(default)s)",
    )
    parser.add_argument(
        "--gpu-arch",
        "--gpu_arch",
        nargs="+",
        default=[],
        metavar="ARCH",
        help="GPUs to build for, such as sm89 sm120 (the one that is there)",
    )
    parser.add_argument(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="where torch measures for --level fp8 (%(default)s)",
    )
    add_post_trained(parser)
    parser.add_argument(
        "--random-weights",
        "--random_weights",
        action="store_true",
        help="seeded random ones instead of the checkpoints', to try a machine out",
    )
    _add_plan_flags(parser.add_argument_group("plans"))
    add_level(parser)
    parser.set_defaults(run=run)


def _add_plan_flags(parser: "argparse._ArgumentGroup") -> None:
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="of all networks but the one that looks at frames, which is float32 (%(default)s)",
    )
    parser.add_argument(
        "--plugins",
        choices=_PLUGINS,
        help="what fused nodes become: our kernels, loaded with the plan or put into it, or standard operators "
        "(load where they were built)",
    )
    parser.add_argument(
        "--sizes",
        choices=_EXTENTS,
        default="any",
        help="any: all pictures that the preset accepts; table: no side longer or shorter than in its table of sizes, "
        "which takes less memory to build (%(default)s)",
    )
    parser.add_argument("--refit", action="store_true", help="weights can be replaced in the plans")
    parser.add_argument(
        "--strip-weights",
        "--strip_weights",
        action="store_true",
        help="leave the weights out of the plans; keep them with --keep-onnx",
    )
    parser.add_argument(
        "--version-compatible",
        "--version_compatible",
        action="store_true",
        help="plans that later versions of TensorRT run too; slower",
    )
    parser.add_argument(
        "--workspace",
        type=float,
        metavar="GIB",
        help="most memory that a kernel may take beside its tensors (all of the GPU's)",
    )
    parser.add_argument(
        "--optimization-level",
        "--optimization_level",
        type=int,
        default=3,
        metavar="0..5",
        help="how long to look for fast kernels (%(default)s)",
    )
    parser.add_argument(
        "--cuda-graphs",
        "--cuda_graphs",
        type=int,
        default=0,
        metavar="N",
        help="how many shapes of each graph the server records and replays (%(default)s)",
    )
    parser.add_argument(
        "--timing-cache",
        "--timing_cache",
        type=Path,
        metavar="FILE",
        help="what TensorRT measures, kept for the next build",
    )
    parser.add_argument(
        "--keep-onnx", "--keep_onnx", type=Path, metavar="FOLDER", help="keep the ONNX files there"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="what TensorRT says (OUTPUT.log)")


def run(args: argparse.Namespace) -> None:
    """Build, with a line of progress for every step."""
    preset = find_preset(args.preset)
    check_repository_flags(args)
    _check_flags(args)
    from predict2_export.plans import PlanChoices, build_plans  # torch takes seconds to load
    from predict2_export.to_onnx import quiet_exporter

    options = _options(args)
    output = args.output or Path("build/served") / f"{preset.name}-{args.flavour}"
    choices = PlanChoices(
        options, args.dtype, args.sizes, args.cuda_graphs, args.timing_cache, args.keep_onnx
    )
    quiet_exporter()
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    found = _recipes(args, preset, output, report)
    whole = output.resolve()
    log = args.log or whole.with_name(f"{whole.name or 'engines'}.log")
    with _logged(log):
        build_plans(
            preset,
            found,
            args.model_repository,
            output,
            report,
            choices,
            only=args.only,
            guard_frames=not args.skip_guardrail_video,
        )
    report(f"{args.only or 'every stage'} is installed in {output}; what TensorRT said is in {log}")
    report(f"not compared with torch yet; do that where the GPU is: {_verify(args, output)}")


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse before any work what would fail after it."""
    if args.cuda_graphs < 0:
        raise InvalidRequestError(f"--cuda-graphs {args.cuda_graphs} must be 0 or more")
    if args.keep_onnx and args.keep_onnx.exists() and not args.keep_onnx.is_dir():
        raise InvalidRequestError(f"--keep-onnx {args.keep_onnx} is a file; name a folder")
    if args.timing_cache and args.timing_cache.is_dir():
        raise InvalidRequestError(
            f"--timing-cache {args.timing_cache} is a folder; name a file in it"
        )


def _options(args: argparse.Namespace) -> "BuildOptions":
    """What the flags want of the plans.

    Raises:
        EngineMismatchError: the flavour isn't installed.
        InvalidRequestError: the flavour or this machine can't do it.
        EngineBuildError: plugins are wanted that weren't built.
    """
    from predict2_export.build_options import (
        BuildOptions,
        check_fp8,
        check_options,
        find_architectures,
        this_gpu,
    )
    from predict2_kernels import plugin_path

    here = this_gpu()
    module = bindings(args.flavour)
    there = args.flavour == "tensorrt" and plugin_path(major(module)) is not None
    options = BuildOptions(
        args.flavour,
        find_architectures(args.flavour, tuple(args.gpu_arch), here),
        plugins=args.plugins or ("load" if there else "none"),
        refittable=args.refit,
        stripped=args.strip_weights,
        version_compatible=args.version_compatible,
        workspace_bytes=_workspace(args.workspace),
        optimization_level=args.optimization_level,
        fixed_memory=args.cuda_graphs > 0,
    )
    if args.level == "fp8":
        check_fp8(options.architectures)
    check_options(options, module, timing_cache=args.timing_cache is not None, gpu=bool(here))
    return options


def _workspace(gib: float | None) -> int | None:
    """In bytes."""
    if gib is None:
        return None
    if not 1 / _GIB <= gib <= _MOST_GIB:  # which no NaN is
        raise InvalidRequestError(
            f"--workspace {gib:g} must be more than 0 and at most {_MOST_GIB} GiB; leave it out for all that there is"
        )
    return int(gib * _GIB)


def _recipes(args: argparse.Namespace, preset: Preset, output: Path, report: Any) -> "list[Recipe]":
    """A recipe for each stage, with the weights and the level that the flags want.

    Raises:
        InvalidRequestError: random weights are wanted, and others too.
        CheckpointError: a calibration is of other weights.
    """
    fp8 = fp8_choice(args, preset)
    if args.random_weights and (args.dit_path or args.lora or fp8):
        raise InvalidRequestError(
            "--random-weights leaves no use for --dit-path, --lora or --level fp8; drop one or the other"
        )
    from predict2_export.fp8.recipe import fp8_recipes
    from predict2_export.layouts import located
    from predict2_export.random_weights import with_random_weights
    from predict2_export.recipes import recipes

    there = located(preset, args.checkpoints)
    found = recipes(
        there,
        args.checkpoints,
        post_trained=post_trained(args, preset),
        trust_torchscript=args.trust_torchscript,
    )
    if args.random_weights:
        return [with_random_weights(recipe) for recipe in found]
    return fp8_recipes(there, found, fp8, output, report, only=args.only) if fp8 else found


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """TensorRT's words go to a file, not among the lines of progress."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("predict2_runtime.engines.tensorrt_log")
    handler = logging.FileHandler(path, mode="w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.propagate = True
        log.removeHandler(handler)
        handler.close()


def _verify(args: argparse.Namespace, output: Path) -> str:
    """The command that compares the plans."""
    words = ["predict2-export", "verify", output, "--checkpoints", args.checkpoints]
    for flag, values in (("--dit-path", args.dit_path), ("--lora", args.lora)):
        words += [word for value in values for word in (flag, value)]
    words += ["--load-ema"] if args.load_ema else []
    words += [] if args.lora_alpha is None else ["--lora-alpha", args.lora_alpha]
    words += ["--trust-torchscript"] if args.trust_torchscript else []
    words += ["--random-weights"] if args.random_weights else []
    words += ["--only", args.only] if args.only else []
    return shlex.join(map(str, words))
