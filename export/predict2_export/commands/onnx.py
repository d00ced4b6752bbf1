# SPDX-License-Identifier: Apache-2.0
"""`predict2-export onnx`: one network as ONNX, for an engine builder on another machine."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predict2_spec.errors import InvalidRequestError
from predict2_spec.presets import PRESETS, Preset, find_preset
from predict2_spec.tensors import STAGES, served_stages

if TYPE_CHECKING:
    from predict2_export.recipes import Recipe

DTYPES = ("float32", "float16", "bfloat16")


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "onnx", help="lower one network to ONNX and stop there; needs little memory for any size"
    )
    parser.add_argument("--preset", required=True, help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--stage", required=True, choices=[stage.name for stage in STAGES])
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="(%(default)s)")
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="lower a denoiser of the level fp8, at the scales that `calibrate` measured",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="seeded random ones instead of the checkpoint's, to try a machine out",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Lower, with a line of progress for every gigabyte."""
    preset = find_preset(args.preset)
    served = [stage.name for stage in served_stages(preset)]
    if args.stage not in served:
        raise InvalidRequestError(
            f"preset {preset.name} has no {args.stage}; it has {', '.join(served)}"
        )
    import torch

    from predict2_export.checkpoint.synthetic import synthetic_weights
    from predict2_export.to_onnx import check_disk, hollow_graphs, quiet_exporter, write_onnx

    quiet_exporter()
    began = time.monotonic()

    def report(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", flush=True)

    recipe = _recipe(args, preset)
    network, graphs = hollow_graphs(recipe.make, recipe.graphs, getattr(torch, args.dtype))
    weights = synthetic_weights(network) if args.random_weights else recipe.weights()
    args.output.mkdir(parents=True, exist_ok=True)
    check_disk(args.output, network, len(graphs))
    for name, graph in graphs.items():
        path = args.output / f"{args.stage}.{name}.onnx"
        report(f"lowering {name} to {path}")
        write_onnx(graph, path, network, weights, report)
    report("done")


def _recipe(args: argparse.Namespace, preset: Preset) -> "Recipe":
    """What is lowered.

    Raises:
        InvalidRequestError: no engine runs the network, or the flags contradict each other.
    """
    if args.calibration and args.random_weights:
        raise InvalidRequestError(
            "--random-weights are none that a --calibration was measured on; drop one of them"
        )
    if args.calibration and not args.stage.endswith("_denoiser"):
        raise InvalidRequestError(
            f"{args.stage} has no level fp8, only denoisers have; leave out --calibration"
        )
    from predict2_export.fp8.calibration import read_calibration
    from predict2_export.fp8.layers import DEFAULT_LAYERS
    from predict2_export.fp8.recipe import fp8_recipe
    from predict2_export.installation import check_files
    from predict2_export.layouts import located
    from predict2_export.recipes import recipes

    found = recipes(located(preset, args.checkpoints), args.checkpoints)
    (recipe,) = (r for r in found if r.network == args.stage)
    recipe.check_lowerable()
    if not args.calibration:
        return recipe
    calibration = read_calibration(args.calibration)
    check_files(preset, [recipe])
    return fp8_recipe(recipe, calibration, DEFAULT_LAYERS, str(args.calibration))
