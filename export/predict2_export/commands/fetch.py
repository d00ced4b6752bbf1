# SPDX-License-Identifier: Apache-2.0
"""`predict2-export fetch`: download exactly the files that a preset needs, checked and resumable."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predict2_export.checkpoint.wording import amount
from predict2_export.fetch import Item, check_space, existing_parent, fetch, plan
from predict2_export.released import EXTRAS, REPOS, Want
from predict2_export.wanted import (
    LAYOUTS,
    Layout,
    RemoteFile,
    is_published,
    known_size,
    missing,
    select,
    wanted,
)
from predict2_spec.errors import CheckpointError, Predict2Error
from predict2_spec.presets import PRESETS, TASKS, find_preset

if TYPE_CHECKING:
    from predict2_export.hub import Hub

EPILOG = """\
A download that was stopped goes on when the command is run again; files that are there aren't fetched again.
Every file is checked before it gets its name; SHA256SUMS in the checkpoint folder lists those that were.

A token is taken from HF_TOKEN or from `hf auth login`. HF_ENDPOINT names another hub, such as a mirror.
"""


def add_parser(commands: Any) -> None:
    """Add the command to argparse's `commands`."""
    parser = commands.add_parser(
        "fetch",
        help="download the files that a preset needs",
        description="Download exactly the files that a preset needs, at pinned revisions.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    published = ", ".join(name for name, preset in PRESETS.items() if is_published(preset))
    parser.add_argument("--preset", help=f"one of {published}")
    parser.add_argument(
        "--checkpoints", type=Path, default=Path("checkpoints"), help="folder (%(default)s)"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, default=[], help="only what these need (all of them)"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="original",
        help="diffusers: what is published so in safetensors, the text encoder in bfloat16 and without its decoder, "
        "which saves 35 GB; not for 0.6b (%(default)s)",
    )
    parser.add_argument(
        "--with",
        nargs="+",
        choices=list(EXTRAS),
        default=[],
        dest="extras",
        help="also the networks that guard or refine prompts",
    )
    parser.add_argument("--list", action="store_true", help="presets and their sizes, offline")
    parser.add_argument("--dry-run", action="store_true", help="list the files and stop")
    parser.add_argument("--yes", action="store_true", help="don't ask before downloading")
    parser.add_argument("--verify", action="store_true", help="check files already there as well")
    parser.add_argument(
        "--no-checksums",
        action="store_true",
        help="take a file that isn't the one this version knows; the hub's own digests are checked anyway",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """List what is needed, ask, fetch."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # read when the hub's client is imported
    if args.list:
        _print_presets()
        return
    if not args.preset:
        raise Predict2Error("name a preset with --preset; --list says which there are")
    preset = find_preset(args.preset)
    if not is_published(preset):
        print(f"preset {preset.name} needs no download; its weights come with this package")
        return
    wants = wanted(preset, args.tasks, args.layout, args.extras)
    hub = _hub()
    files, failures = _listed(wants, hub)
    items = plan(files, args.checkpoints, verify=args.verify)
    _print_plan(items, args.checkpoints)
    check_space(items, args.checkpoints)
    if not args.dry_run and _agreed(items, args.yes):
        failures += fetch(
            items, args.checkpoints, hub.download, _say, checksums=not args.no_checksums
        )
    if failures:
        raise CheckpointError("not everything could be fetched:\n  " + "\n  ".join(failures))


def _say(line: str) -> None:
    print(line, flush=True)


def _hub() -> "Hub":
    from huggingface_hub import get_token

    from predict2_export.hub import Hub

    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return Hub(endpoint.rstrip("/"), get_token())


def _listed(wants: Sequence[Want], hub: "Hub") -> tuple[list[RemoteFile], list[str]]:
    """What the hub has of the wanted files, and why some repositories aren't among them."""
    from predict2_export.hub import UnreachableError

    files: list[RemoteFile] = []
    failures = []
    for want in wants:
        try:
            chosen = select(want, hub.files(want.repo))
        except UnreachableError:
            raise  # the next repository is on the same hub
        except CheckpointError as error:
            failures.append(str(error))
        else:
            files += chosen
            failures += missing(want, chosen)
    return files, failures


def _print_plan(items: Sequence[Item], checkpoints: Path) -> None:
    width = max((len(item.file.path) for item in items), default=0)
    for item in items:
        file = item.file
        print(
            f"{file.path:{width}}  {file.repo.revision[:8]}  {amount(file.size_bytes):>9}  {item.state.value}"
        )
    for name in dict.fromkeys(item.file.repo.name for item in items):
        if REPOS[name].gated:
            print(f"{name} is gated: accept its licence at {REPOS[name].page}")
    total = sum(item.file.size_bytes for item in items)
    to_come = sum(item.missing_bytes for item in items)
    free = shutil.disk_usage(existing_parent(checkpoints)).free
    _say(f"{amount(to_come)} to fetch of {amount(total)}; {amount(free)} free for {checkpoints}")


def _agreed(items: Sequence[Item], yes: bool) -> bool:
    if yes or not any(item.missing_bytes for item in items) or not sys.stdin.isatty():
        return True
    try:
        return input("fetch them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def _print_presets() -> None:
    print(f"{'preset':22}  {'original':>11}  {'diffusers':>11}")
    for preset in PRESETS.values():
        if is_published(preset):
            sizes = [_about(preset.name, layout) for layout in LAYOUTS]
            print(f"{preset.name:22}  {sizes[0]:>11}  {sizes[1]:>11}")
    print(
        "~: computed from the weights; >: without a file of unknown size. --dry-run asks the hub."
    )


def _about(name: str, layout: Layout) -> str:
    try:
        size, complete = known_size(PRESETS[name], layout)
    except CheckpointError:
        return "-"
    return f"{'~' if complete else '>'} {size / 1e9:.1f} GB"
