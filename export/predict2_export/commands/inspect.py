# SPDX-License-Identifier: Apache-2.0
"""`predict2-export inspect`: what a checkpoint is, and which presets it fits."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predict2_export.checkpoint.wording import amount
from predict2_spec.errors import CheckpointError

if TYPE_CHECKING:
    from predict2_export.checkpoint.identify import Inspection


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "inspect",
        help="say what a checkpoint is and which presets it fits",
        description="What a file or folder holds, told from names and shapes: weights aren't read, and "
        "nothing in a file can run code. The exit code is 1 if one fits no preset.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="file or folder")
    parser.add_argument("--tensors", action="store_true", help="list every tensor too")
    parser.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print what each file is; go on after one that can't be read."""
    from predict2_export.checkpoint.identify import inspect  # torch takes seconds to load

    reports, refused = [], []
    for path in args.files:
        try:
            inspection = inspect(path)
        except CheckpointError as error:
            refused.append(str(error))
            reports.append({"path": str(path), "error": str(error)})
            continue
        identity = inspection.identity
        if not identity.presets:
            refused.append(f"{path} fits no preset: {identity.reason}")
        reports.append(_report(inspection, args.tensors))
        if not args.json:
            print("\n".join(_lines(inspection, args.tensors)))
    if args.json:
        print(json.dumps(reports, indent=2))
    if refused:
        raise CheckpointError("\n".join(refused))


def _report(inspection: "Inspection", tensors: bool) -> dict[str, Any]:
    from predict2_export.checkpoint.identify import dtype_name

    report = {
        "path": inspection.path,
        "container": inspection.container,
        "num_files": inspection.num_files,
        "file_bytes": inspection.file_bytes,
        "num_tensors": len(inspection.tensors),
        "tensor_bytes": inspection.tensor_bytes,
        "dtypes": inspection.dtypes,
        **asdict(inspection.identity),
    }
    if tensors:
        report["tensors"] = {
            key: {"dtype": dtype_name(tensor), "shape": list(tensor.shape)}
            for key, tensor in inspection.tensors.items()
        }
    return report


def _lines(inspection: "Inspection", tensors: bool) -> list[str]:
    from predict2_export.checkpoint.identify import dtype_name

    identity = inspection.identity
    dtypes = ", ".join(f"{count} {name}" for name, count in inspection.dtypes.items())
    files = "" if inspection.num_files == 1 else f" in {inspection.num_files} files"
    rows = [
        ("what", identity.title or "unknown"),
        ("names", identity.naming),
        ("file", f"{inspection.container}{files}, {amount(inspection.file_bytes)}"),
        ("tensors", f"{len(inspection.tensors)}, {amount(inspection.tensor_bytes)}: {dtypes}"),
        *(("note", note) for note in identity.notes),
        ("fits", ", ".join(identity.presets) or "no preset"),
        ("nearest", identity.nearest),
    ]
    lines = [inspection.path, *(f"  {name:8} {text}" for name, text in rows if text)]
    if tensors:
        lines += [
            f"    {key}  {dtype_name(tensor)} {list(tensor.shape)}"
            for key, tensor in inspection.tensors.items()
        ]
    return lines
