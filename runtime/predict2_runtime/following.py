# SPDX-License-Identifier: Apache-2.0
"""Requests that are followed by their id, in files: told by the process that works on one, read by whoever asks.

    running/NAME/claim   JSON: digest, lease_s; its time of change tells when the lease was last renewed
    running/NAME/event   the last event, a line with its checksum
    ended/NAME           what it made, or why it failed; see kept.py
    cancelled/NAME       somebody asked it to stop, maybe before it began

NAME is the SHA-256 of the request id, so no caller's text gets into a path. Whoever makes running/NAME owns the id.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from predict2_spec.admission import IS_RUNNING
from predict2_spec.errors import (
    InvalidRequestError,
    RequestCancelledError,
    RequestExpiredError,
    ServerUnavailableError,
)
from predict2_spec.results import Event, Failure
from predict2_spec.tensors import FRAMES
from predict2_spec.tracking import RequestState

from .drain import RUN_FOLDER_VARIABLE
from .kept import PART, Kept, Outputs, Shelf, remove_old, size_of
from .policy import Policy

log = logging.getLogger(__name__)

_FOLDERS = ("running", "ended", "cancelled")
_CLAIM, _EVENT = "claim", "event"
_OURS = re.compile("[0-9a-f]{64}")  # as _name makes them
_LINE_BYTES = 254  # of an event; names of stages and numbers are short
_READ_TRIES = 10


@dataclass(frozen=True)
class StateFolder:
    """The folder of a server's followed requests."""

    folder: Path
    ended: Shelf

    def begin(self, request_id: str, digest: str, lease_s: int | None) -> "Record | Kept":
        """Claim an id for a request that begins; or what an earlier one of the same content made.

        One that failed, or that made frames, which aren't kept, begins anew.

        Args:
            request_id: checked.
            digest: of what is asked for.
            lease_s: how long the work goes on when nobody renews it; None: that doesn't matter.

        Raises:
            InvalidRequestError: a request of this id is running, or one of other content was.
            OSError: the disk takes no more.
        """
        name = _name(request_id)
        if kept := self._made(name, request_id, digest):
            return kept
        record = Record(self, name, digest, lease_s)
        record.claim(request_id)
        try:
            kept = self._made(name, request_id, digest)  # it ended just now
            if kept is None:
                self.ended.remove(name)
        except (InvalidRequestError, OSError):
            record.release()
            raise
        if kept:
            record.release()
        return kept or record

    def _made(self, name: str, request_id: str, digest: str) -> Kept | None:
        kept = self.ended.find(name, with_outputs=True)
        if kept and kept.digest != digest:
            raise InvalidRequestError(
                f"request id {request_id} was used for a request of other content; send another id"
            )
        return kept if kept and kept.done and kept.whole else None

    def look(self, request_id: str, *, fetch: bool = False) -> tuple[RequestState, Outputs]:
        """How far a request is; with `fetch` what it made too, if that is kept."""
        name = _name(request_id)
        running = self.running(name)
        for _ in range(2):  # it may end between the two looks
            if kept := self.ended.find(name, with_outputs=fetch):
                state = RequestState(
                    "done" if kept.done else "failed",
                    failure=kept.failure,
                    kept_s=0.0 if kept.done and kept.failure else round(kept.rest_s, 3),
                )
                return state, kept.outputs
            if running.is_dir():
                return RequestState("running", _read_event(running)), {}
        return RequestState("unknown"), {}

    def renew(self, request_id: str) -> None:
        """Somebody still waits for a request, if it is running."""
        _renew(self.running(_name(request_id)))

    def cancel(self, request_id: str) -> None:
        """Ask a request to stop that runs, or that has yet to begin.

        Raises:
            ServerUnavailableError: the disk takes no more, so nothing was asked.
        """
        name = _name(request_id)
        if self.ended.find(name, with_outputs=False) is not None:
            return
        try:
            self.cancelled(name).touch(mode=0o600)
        except OSError as error:
            raise ServerUnavailableError(
                f"the server couldn't note the wish to cancel ({error.strerror}); try again, or let the lease expire"
            ) from error

    def tidy(self) -> None:
        """Remove what is too old or too much."""
        self.ended.make_room()
        remove_old(self.folder / "cancelled", self.ended.max_seconds)

    def running(self, name: str) -> Path:
        """The folder of a request while it runs."""
        return self.folder / "running" / name

    def cancelled(self, name: str) -> Path:
        """The file that says that a request is to stop."""
        return self.folder / "cancelled" / name


@dataclass(frozen=True)
class Record:
    """One running request, whose id it has claimed."""

    state: StateFolder
    name: str
    digest: str
    lease_s: int | None

    @property
    def _folder(self) -> Path:
        return self.state.running(self.name)

    def claim(self, request_id: str) -> None:
        """Claim the id.

        Raises:
            InvalidRequestError: a request of it is running.
            OSError: the disk takes no more.
        """
        try:
            self._folder.mkdir(mode=0o700)
        except FileExistsError:
            reason = "and other content is running; ask the model tracking about it"
            if _read_digest(self._folder) in ("", self.digest):
                reason = IS_RUNNING  # whoever sent the same again waits for its result then
            raise InvalidRequestError(
                f"a request with id {request_id} {reason}, or send another id"
            ) from None
        try:
            text = json.dumps({"digest": self.digest, "lease_s": self.lease_s})
            (self._folder / _CLAIM).write_text(text)
            _renew(self._folder)
        except OSError:
            self.release()
            raise

    def renew(self) -> None:
        """Its caller is there."""
        _renew(self._folder)

    def release(self) -> None:
        """Let the id go."""
        with suppress(OSError):  # what can't be removed costs nobody his result
            self.state.cancelled(self.name).unlink(missing_ok=True)
        # Last, for then the next of this id may begin, and be cancelled.
        shutil.rmtree(self._folder, ignore_errors=True)

    def note(self, event: Event) -> None:
        """Tell how far it is. A full disk hides progress and stops nothing."""
        # In place, not by renaming: that waits for the disk now and then, some milliseconds at every step.
        with suppress(OSError):
            handle = os.open(self._folder / _EVENT, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.pwrite(handle, _to_line(event), 0)
            finally:
                os.close(handle)

    def check(self, *, leased: bool = True) -> None:
        """Go on only while nobody asked to stop and, if `leased`, the lease is kept.

        Raises:
            RequestCancelledError: `tracking` was asked to cancel it.
            RequestExpiredError: nobody renewed its lease.
        """
        if self.state.cancelled(self.name).exists():
            raise RequestCancelledError("the request was cancelled through tracking")
        if self.lease_s is None or not leased:
            return
        with suppress(FileNotFoundError):
            idle = time.monotonic_ns() - (self._folder / _CLAIM).stat().st_mtime_ns
            if idle > self.lease_s * 1_000_000_000:
                raise RequestExpiredError(
                    f"nobody renewed the request's lease of {self.lease_s} s; renew it through tracking while you "
                    "wait, or send it with a longer one"
                )

    def keep(self, outputs: Outputs) -> None:
        """It made `outputs`. Frames aren't kept; nor is anything that is too large or finds no room on the disk."""
        made = {k: v for k, v in outputs.items() if v is not None and k != FRAMES.name}
        whole = outputs.get(FRAMES.name) is None
        size, most = size_of(made), self.state.ended.max_bytes
        if size > most:
            self._lost(f"its {size} bytes are more than the {most} of predict2-serve --kept-bytes")
            return
        try:
            self.state.ended.put(self.name, Kept(self.digest, True, None, made, whole))
        except OSError as error:
            log.warning("a result of %d bytes wasn't kept: %s", size, error)
            self._lost(f"the server's disk couldn't take it ({error.strerror})")
        else:
            self.release()

    def _lost(self, why: str) -> None:
        message = f"the result was sent but not kept: {why}; to get it again, send the request with another id"
        self._end(Kept(self.digest, True, Failure("NOT_FOUND", message)))

    def fail(self, failure: Failure) -> None:
        """It failed."""
        self._end(Kept(self.digest, False, failure))

    def _end(self, kept: Kept) -> None:
        try:
            self.state.ended.put(self.name, kept)
        except OSError as error:
            log.warning("how a request ended couldn't be written down: %s", error)
        self.release()


def open_state(environment: Mapping[str, str], policy: Policy) -> StateFolder | None:
    """Where this server's requests are followed; None without predict2-serve, which names a folder.

    Raises:
        ServerUnavailableError: the folder can't be made or used.
    """
    run_folder = environment.get(RUN_FOLDER_VARIABLE)
    folder = policy.state or (run_folder and f"{run_folder}/state")
    if not folder:
        return None
    return make_state(Path(folder), policy)


def make_state(folder: Path, policy: Policy) -> StateFolder:
    """Make what is missing of the folder, for this user alone.

    Raises:
        ServerUnavailableError: it can't be made, or is another's.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _FOLDERS:
            (folder / name).mkdir(mode=0o700, exist_ok=True)
            (folder / name).chmod(0o700)  # also what was there; somebody else's is refused
    except OSError as error:
        raise ServerUnavailableError(
            f"requests can't be followed in {folder} ({error.strerror}); mend that, or name another folder with --state"
        ) from error
    return StateFolder(folder, Shelf(folder / "ended", policy.kept_bytes, policy.kept_seconds))


@contextmanager
def taken_over(policy: Policy) -> Iterator[None]:
    """Use a folder that outlives servers, if the owner named one: alone, and what the last one left running has failed.

    Raises:
        ServerUnavailableError: it can't be used, or another server uses it.
    """
    if not policy.state:
        yield
        return
    state = make_state(Path(policy.state), policy)
    handle = os.open(state.folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _lock(handle, state.folder)
        _check_ours(state.folder)
        state.ended.remove_parts()
        for running in (state.folder / "running").iterdir():
            lost = Failure("UNAVAILABLE", "the server ended before the request did; send it again")
            Record(state, running.name, _read_digest(running), None).fail(lost)
        for mark in (state.folder / "cancelled").iterdir():
            mark.unlink()
        yield
    finally:
        os.close(handle)


def _check_ours(folder: Path) -> None:
    """Refuse a folder named by mistake, before what is in it counts as results that are too old."""
    for name in _FOLDERS:
        for path in (folder / name).iterdir():
            if not (_OURS.fullmatch(path.name) or path.name.startswith(PART)):
                raise ServerUnavailableError(
                    f"{path} is nothing that a server left there; name another folder with --state"
                )


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process, however it ends
    except BlockingIOError as error:
        raise ServerUnavailableError(
            f"another server follows its requests in {folder}; name another folder with --state"
        ) from error
    except OSError as error:
        log.warning("%s can't be locked (%s); use it for one server only", folder, error.strerror)


def _name(request_id: str) -> str:
    return hashlib.sha256(request_id.encode()).hexdigest()


def _renew(folder: Path) -> None:
    now = time.monotonic_ns()  # the same clock in all processes, and nobody can set it
    with suppress(FileNotFoundError):
        os.utime(folder / _CLAIM, ns=(now, now))


def _to_line(event: Event) -> bytes:
    text = event.to_json().encode()
    return (b"%08x %s" % (crc32(text), text)).ljust(_LINE_BYTES) + b"\n"


def _read_event(folder: Path) -> Event | None:
    """The last event; the checksum shows when another was being written over it meanwhile."""
    for _ in range(_READ_TRIES):
        try:
            check, _, text = (folder / _EVENT).read_bytes().rstrip().partition(b" ")
        except FileNotFoundError:
            return None
        if check == b"%08x" % crc32(text):
            return Event.from_json(text.decode())
    return None


def _read_digest(folder: Path) -> str:
    try:
        return str(json.loads((folder / _CLAIM).read_text())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
