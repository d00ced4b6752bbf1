# SPDX-License-Identifier: Apache-2.0
"""What each `predict2` command does; `say` prints a line of its answer."""

import argparse
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from predict2_spec import admission
from predict2_spec.errors import InvalidRequestError, Predict2Error, ServerError, in_words
from predict2_spec.guardrails import BLOCKED_PREFIX
from predict2_spec.presets import Task
from predict2_spec.requests import Request, Text2ImageRequest, Text2WorldRequest
from predict2_spec.results import Event

from . import batch, best_of_n, doctor, flags, following, media, outputs, progress, report
from .access import make_access
from .client import Client
from .exchange import OnEvent
from .settings import make_request
from .terminal import note, print_table
from .wire import Result

Say = Callable[[str], None]


def run(args: argparse.Namespace, say: Say) -> int:
    """Run the command that `args` names; returns the exit code."""
    commands = {
        flags.BEST_OF_N: run_best_of_n,
        "demo": run_demo,
        "sheet": run_sheet,
        "ready": run_ready,
        "doctor": run_doctor,
        "fetch": following.run_fetch,
        "cancel": following.run_cancel,
        "status": following.run_status,
    }
    return commands.get(args.command, run_task)(args, say)


def run_task(args: argparse.Namespace, say: Say) -> int:
    """text2image, video2world or text2world: one request, or a batch file of them."""
    if args.batch_input_json:
        return _run_batch(args)
    task: Task = args.task
    path = outputs.output_path(task, args.save_path)
    values = flags.settings(args)
    if task == "video2world":
        if path.exists() and Path(args.input_path).exists() and path.samefile(args.input_path):
            raise InvalidRequestError(f"output {path} is the input; give another --save_path")
        values.update(media.read_input(args.input_path))
    request = make_request(task, path, values)
    if not (args.resume and outputs.is_recorded(path, request)):
        with _client(args) as client:
            _make(client, args, request, path)
    if not args.quiet:
        say(str(path))
    return 0


def run_best_of_n(args: argparse.Namespace, say: Say) -> int:
    """Several clips from one input, judged and ranked."""
    folder: Path = args.save_path
    candidates = _candidates(args)
    outputs.prepare(folder / report.OVERVIEW)
    with contextlib.ExitStack() as stack:
        count = min(args.parallel, len(candidates))
        clients = [stack.enter_context(_client(args)) for _ in range(count)]
        show = stack.enter_context(progress.board(args.quiet))
        work = best_of_n.Work(args.num_critic_trials, args.seed, args.resume, args.timeout, show)

        def tell(clip: report.Clip) -> None:
            if clip.error or not args.quiet:
                result = clip.error or f"score {clip.score:.2f}"
                note(f"{clip.path.name}: {result}")

        clips, interrupted = best_of_n.judge_all(candidates, work, clients, tell)
    if not any(clip.made for clip in clips):  # the report of an earlier run is worth more
        if interrupted:
            raise KeyboardInterrupt
        raise ServerError(f"no clip came about; the first failed because: {clips[0].error}")
    best_of_n.write_report(folder, clips)
    if not args.quiet:
        _print_ranking(clips)
        say(str(folder / report.OVERVIEW))
    if not interrupted and any(clip.unavailable for clip in clips):
        note("the server can't go on now; once it can, the same command with --resume continues")
    return best_of_n.exit_code(clips, interrupted)


def _candidates(args: argparse.Namespace) -> list[best_of_n.Candidate]:
    if args.skip_generation:
        return best_of_n.present(args.save_path)
    values = {**flags.settings(args), **media.read_input(args.input_path)}
    values["prompt"] = args.prompt_prefix + args.prompt
    stem = Path(args.input_path).stem
    return best_of_n.planned(args.save_path, stem, values, args.num_generations)


def run_demo(args: argparse.Namespace, say: Say) -> int:
    """A picture, a clip and the clip's contact sheet."""
    folder: Path = args.output_dir
    picture, clip = folder / "picture.jpg", folder / "clip.mp4"
    with _client(args) as client:
        _make(client, args, Text2ImageRequest(prompt=args.prompt, seed=args.seed), picture)
        _make(client, args, Text2WorldRequest(prompt=args.prompt, seed=args.seed), clip)
    sheet = _write_sheet(clip, folder / "clip_sheet.png")
    for what, path in (("picture", picture), ("clip", clip), ("contact sheet", sheet)):
        say(f"{what}: {path}")
    return 0


def run_sheet(args: argparse.Namespace, say: Say) -> int:
    """A clip's contact sheet."""
    target = args.output or args.clip.with_name(f"{args.clip.stem}_sheet.png")
    target = outputs.path_with_suffix(target, (".png", ".jpg", ".jpeg"))
    say(str(_write_sheet(args.clip, target, args.columns)))
    return 0


def run_doctor(args: argparse.Namespace, say: Say) -> int:
    """What this machine and the server have and lack; 1 if anything failed."""
    failed = False
    for finding in doctor.examine(args.url, args.repository, make_access(**flags.connection(args))):
        say(str(finding))
        failed |= finding.status == "failed"
    return int(failed)


def run_ready(args: argparse.Namespace, say: Say) -> int:
    """Wait for the server."""
    with Client(**flags.connection(args)) as client:
        client.wait_until_ready(args.timeout)
    say(f"{args.url} is ready")
    return 0


def _make(client: Client, args: argparse.Namespace, request: Request, path: Path) -> None:
    outputs.prepare(path)
    outputs.save(path, _generate(client, args, path.name, request), request)


def _generate(client: Client, args: argparse.Namespace, label: str, request: Request) -> Result:
    request_id = getattr(args, "request_id", "") or uuid4().hex
    with progress.shown(label, args.quiet) as on_event:
        tell = on_event and _with_id(on_event, f"{label}: request {request_id}")
        return client.generate(request, tell, args.timeout, request_id=request_id)


def _with_id(on_event: OnEvent, line: str) -> OnEvent:
    """The same, and before the first event the id by which other commands know the request."""
    told = False

    def tell(event: Event) -> None:
        nonlocal told
        if not told:
            note(line)
            told = True
        on_event(event)

    return tell


def _client(args: argparse.Namespace, retry_for_s: float = 0.0, priority: int = 0) -> Client:
    def on_retry(error: Predict2Error, pause_s: float) -> None:
        note(f"{in_words(error)}; trying again in {pause_s:.0f} s")

    return Client(
        **flags.connection(args),
        lease_s=args.lease,
        retry_for_s=retry_for_s if args.retry_for is None else args.retry_for,
        priority=priority,
        on_retry=None if args.quiet else on_retry,
    )


def _write_sheet(clip: Path, target: Path, columns: int = 0) -> Path:
    outputs.prepare(target)
    media.write_picture(target, media.contact_sheet(media.decode_clip(clip), columns))
    return target


def _run_batch(args: argparse.Namespace) -> int:
    task: Task = args.task
    items = batch.load_batch(args.batch_input_json, task, flags.settings(args))
    found: list[batch.Outcome] = []
    with _client(args, batch.RETRY_FOR_S, admission.BATCH) as client:

        def generate(request: Request, item: batch.Item) -> Result:
            label = f"[{item.index + 1}/{len(items)}] {item.output.name}"
            return _generate(client, args, label, request)

        runs = batch.run_batch(items, task, generate, resume=args.resume)
        for outcome in runs:
            found.append(outcome)
            _tell(outcome, len(items), args.quiet)
    if not args.quiet:
        _print_summary(found)
    return batch.exit_code(found)


def _tell(outcome: batch.Outcome, count: int, quiet: bool) -> None:
    if quiet and outcome.status in ("done", "skipped"):
        return
    reason = f": {outcome.message}" if outcome.message else ""
    item = outcome.item
    note(f"[{item.index + 1}/{count}] {item.output} {outcome.status}{reason}")


def _print_summary(found: Sequence[batch.Outcome]) -> None:
    def row(outcome: batch.Outcome) -> list[str]:
        item, tried = outcome.item, outcome.status in ("done", "failed", "blocked")
        seconds = f"{outcome.seconds:.1f}" if tried else ""
        return [str(item.index), str(item.output), outcome.status, seconds, outcome.message]

    print_table(["item", "output", "status", "seconds", "message"], map(row, found))


def _print_ranking(clips: Sequence[report.Clip]) -> None:
    def row(rank: int, clip: report.Clip) -> list[str]:
        if clip.error:  # stderr has the reason
            return ["", clip.seed_text, clip.path.name, _why_unranked(clip), "", "", ""]
        counts = report.counted(clip.responses)
        numbers = (counts.no_anomaly, counts.anomaly, counts.unreadable)
        first = [str(rank), clip.seed_text, clip.path.name, f"{clip.score:.2f}"]
        return [*first, *map(str, numbers)]

    heads = ["rank", "seed", "file", "score", "no anomaly", "anomaly", "unreadable"]
    print_table(heads, [row(rank, clip) for rank, clip in enumerate(clips, start=1)])


def _why_unranked(clip: report.Clip) -> str:
    if clip.error in (best_of_n.INTERRUPTED, best_of_n.NOT_RUN):
        return clip.error
    return "blocked" if clip.error.startswith(BLOCKED_PREFIX) else "failed"
