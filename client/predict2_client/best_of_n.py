# SPDX-License-Identifier: Apache-2.0
"""Several clips from one input, judged by the critic and ranked; one that fails doesn't stop the rest."""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

from predict2_spec import critic
from predict2_spec.errors import (
    InvalidRequestError,
    Predict2Error,
    ServerUnavailableError,
    in_words,
)
from predict2_spec.requests import Request
from predict2_spec.results import Event

from . import media, outputs, report
from .client import Client
from .exchange import OnEvent
from .progress import Shown
from .report import NO_SEED, OVERVIEW, Clip
from .settings import make_request
from .wire import Judgement

RANKING = "ranking.json"
INTERRUPTED, NOT_RUN = "interrupted", "not run"  # errors of clips that did not fail themselves


@dataclass(frozen=True)
class Candidate:
    """A clip to judge."""

    path: Path
    seed: int
    request: Request | None = None  # makes it first; None: it is there


def planned(folder: Path, stem: str, values: Mapping[str, Any], count: int) -> list[Candidate]:
    """The clips to make from one input: of the seed in `values` and of those after it.

    Raises:
        InvalidRequestError: a value is outside its limits, or the folder can't be written.
    """
    candidates = []
    for seed in range(values["seed"], values["seed"] + count):
        path = folder / f"{stem}_seed{seed}.mp4"
        outputs.prepare(path)
        request = make_request("video2world", path, {**values, "seed": seed})
        candidates.append(Candidate(path, seed, request))
    return candidates


def present(folder: Path) -> list[Candidate]:
    """The clips that lie in a folder.

    Raises:
        InvalidRequestError: there are none.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() == ".mp4")
    if not paths:
        raise InvalidRequestError(
            f"folder {folder} holds no *.mp4 to judge; name another --save_path, "
            "or leave out --skip_generation"
        )
    return [Candidate(path, _seed_of(path)) for path in paths]


def _seed_of(path: Path) -> int:
    """The seed a clip was made with, as its side file says, or else its name."""
    seed = _side_record(path).get("seed")
    if type(seed) is not int:
        found = re.search(r"_seed([0-9]+)\Z", path.stem)
        seed = int(found[1]) if found else NO_SEED
    return seed if 0 <= seed < 2**32 else NO_SEED


@dataclass(frozen=True)
class Work:
    """Makes a candidate and has it judged."""

    num_trials: int
    seed: int  # of the critic's answers about a clip that has none itself
    resume: bool  # keep a clip that an equal request made, and a judgement of as many trials
    timeout_s: float | None
    show: Shown

    def __call__(self, client: Client, candidate: Candidate) -> Clip:
        """The clip and its judgement, as files too; a failure is told in it, not raised."""
        path = candidate.path
        clip = Clip(path=path, seed=candidate.seed, score=0.0, responses=())
        try:
            with self.show(path.name) as on_event:
                if candidate.request:
                    self._make(client, path, candidate.request, on_event)
                clip = replace(clip, made=True, record=_side_record(path))
                data = media.read_input(path)["video"]
                judgement = self._judge(client, candidate, data, on_event)
            clip = replace(clip, score=judgement.score, responses=judgement.responses)
            return replace(clip, page=_write_judgement(clip, data))
        except (Predict2Error, OSError) as error:
            unavailable = isinstance(error, ServerUnavailableError)
            return replace(clip, error=in_words(error), unavailable=unavailable)

    def _make(self, client: Client, path: Path, request: Request, on_event: OnEvent | None) -> None:
        if self.resume and outputs.is_recorded(path, request):
            return
        result = client.generate(request, on_event, self.timeout_s)
        _forget_judgement(path)  # it was of another clip
        outputs.save(path, result, request)

    def _judge(
        self, client: Client, candidate: Candidate, data: bytes, on_event: OnEvent | None
    ) -> Judgement:
        earlier = _earlier_responses(candidate.path) if self.resume else ()
        if len(earlier) == self.num_trials:
            return Judgement(earlier, critic.score(earlier))
        tell = on_event or (lambda event: None)
        began = time.monotonic()
        tell(Event("judge", 0, 1, 0.0))
        seed = self.seed if candidate.seed == NO_SEED else candidate.seed
        judgement = client.judge(data, self.num_trials, seed, self.timeout_s)
        tell(Event("judge", 1, 1, time.monotonic() - began))
        return judgement


def _side_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(outputs.side_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a clip from elsewhere has none
        return {}
    return record if isinstance(record, dict) else {}


def _score_files(path: Path) -> list[Path]:
    """The files of a clip's judgements; not a clip of such a name, nor its side file."""
    named = re.compile(re.escape(path.stem) + r"_score[0-9]{3}\.(json|html)")
    return [
        file
        for file in sorted(path.parent.iterdir())
        if named.fullmatch(file.name) and not file.with_suffix(".mp4").exists()
    ]


def _forget_judgement(path: Path) -> None:
    for file in _score_files(path):
        file.unlink(missing_ok=True)


def _earlier_responses(path: Path) -> tuple[str, ...]:
    """What the critic said of the clip as it is now; nothing if it said nothing yet."""
    files = [file for file in _score_files(path) if file.suffix == ".json"]
    if len(files) != 1 or files[0].stat().st_mtime < path.stat().st_mtime:
        return ()
    try:
        responses = json.loads(files[0].read_text(encoding="utf-8"))
    except ValueError:
        return ()
    texts = isinstance(responses, list) and all(isinstance(text, str) for text in responses)
    return tuple(responses) if texts else ()


def _write_judgement(clip: Clip, data: bytes) -> str:
    """Write the responses and their page in place of an earlier judgement; returns the page's name."""
    stem = f"{clip.path.stem}_score{int(100 * clip.score):03d}"  # cut off, not rounded, as the original does
    page = f"{stem}.html"
    _forget_judgement(clip.path)
    _write(clip.path.with_name(f"{stem}.json"), json.dumps(clip.responses, indent=2))
    video = report.source(clip.path.name, data)
    _write(clip.path.with_name(page), report.clip_page(clip, video))
    return page


def _write(path: Path, text: str) -> None:
    # A file's name may hold bytes that are no text.
    media.write_whole(path, text.encode(errors="replace"))


def judge_all(
    candidates: Sequence[Candidate],
    work: Callable[[Client, Candidate], Clip],
    clients: Sequence[Client],
    tell: Callable[[Clip], None],
) -> tuple[list[Clip], bool]:
    """Work on all candidates, one a client at a time; best first, and whether Ctrl-C ended it early.

    Once the server was unavailable to one, no other is begun.

    Args:
        candidates: in the order they are begun.
        work: makes and judges one.
        clients: connections, each used for one candidate at a time.
        tell: told of each that is finished, in this thread.
    """
    free: SimpleQueue[Client] = SimpleQueue()
    for client in clients:
        free.put(client)

    unavailable = threading.Event()

    def one(candidate: Candidate) -> Clip:
        client = free.get()
        try:
            if unavailable.is_set():
                return _unjudged(candidate, NOT_RUN)
            clip = work(client, candidate)
            if clip.unavailable:
                unavailable.set()
            return clip
        finally:
            free.put(client)

    begun: dict[Future[Clip], Candidate] = {}
    finished: dict[Future[Clip], Clip] = {}
    interrupted = False
    with ThreadPoolExecutor(len(clients)) as pool:
        try:
            for candidate in candidates:
                begun[pool.submit(one, candidate)] = candidate
            for future in as_completed(begun):
                finished[future] = future.result()
                tell(finished[future])
        except KeyboardInterrupt:
            interrupted = True
            pool.shutdown(wait=False, cancel_futures=True)
            for client in clients:
                client.close()  # which cancels on the server what still runs
    clips = [finished.get(future) or _interrupted(future, begun[future]) for future in begun]
    return cast("list[Clip]", list(critic.ranked(clips))), interrupted


def _interrupted(future: Future[Clip], candidate: Candidate) -> Clip:
    """A clip that nobody waited for any more; it may have been finished nevertheless."""
    clip = _unjudged(candidate, INTERRUPTED)
    # A closed connection shows in many ways; none is the clip's own failure.
    if not future.cancelled() and future.exception() is None:
        clip = future.result()
    return clip if clip.page else replace(clip, error=INTERRUPTED)


def _unjudged(candidate: Candidate, reason: str) -> Clip:
    return Clip(path=candidate.path, seed=candidate.seed, score=0.0, responses=(), error=reason)


def write_report(folder: Path, clips: Sequence[Clip]) -> None:
    """Write the ranking, for programs and for people."""
    rows = [{"file": clip.path.name, **_as_judged(clip)} for clip in clips]
    _write(folder / RANKING, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    _write(folder / OVERVIEW, report.overview(clips))


def _as_judged(clip: Clip) -> dict[str, Any]:
    values = {f.name: getattr(clip, f.name) for f in fields(critic.Judged)}
    return {**values, "seed": None if clip.seed == NO_SEED else clip.seed}


def exit_code(clips: Sequence[Clip], interrupted: bool) -> int:
    """0 when every clip is there and judged, 130 when interrupted, else 1."""
    if interrupted:
        return 130
    return 1 if any(clip.error for clip in clips) else 0
