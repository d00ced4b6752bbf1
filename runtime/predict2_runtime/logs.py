# SPDX-License-Identifier: Apache-2.0
"""What model processes write to their log: one line an event, as text or JSON, never a prompt, key or file's content."""

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from .outcomes import Outcome, Status

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
LOG_LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

OURS = "predict2_runtime"  # the parent of all our loggers
REQUEST, MESSAGE = "request", "message"  # events
WITHHELD = "(not shown: it may repeat the request)"
_WORD = re.compile(r"\w{4,}")
_UNPRINTABLE = re.compile(r"[^!-~]")
_MOST_OF_AN_ID = 128  # characters
_LEVELS: dict[Status, int] = {"failed": logging.ERROR, "unavailable": logging.WARNING}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """The request that a process works on; an instance of a model has one at a time."""

    id: str = ""
    words: frozenset[str] = frozenset()  # of its texts, that no line may hold


_current = _Request()


def begin_request(request_id: str) -> None:
    """From here on lines of all threads are about this request, until the next begins; "" stands for none.

    Args:
        request_id: as the caller gave it; empty if it gave none.
    """
    global _current
    # the end of a line in it would begin one of the caller's own
    _current = _Request(_UNPRINTABLE.sub("?", request_id[:_MOST_OF_AN_ID]))


def withhold(texts: Iterable[str]) -> None:
    """While the current request lasts, show no library's message that has a word of these texts."""
    global _current
    _current = replace(_current, words=_words(texts))


def _words(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(word.casefold() for text in texts for word in _WORD.findall(text))


def open_log(
    form: LogFormat, level: LogLevel, model: str, instance: str, secrets: Iterable[str] = ()
) -> None:
    """Have this process write its log to stderr; what other libraries say, from warnings on.

    Args:
        form: of a line.
        level: the least that is written.
        model: Triton's name of the model.
        instance: and of the process that is one of its instances.
        secrets: what no line may hold.
    """
    handler = logging.StreamHandler(sys.stderr)
    source = _Source(model, instance, tuple(filter(None, secrets)))
    handler.setFormatter(_Formatter(source, _as_json if form == "json" else _as_text))
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger(OURS).setLevel(level.upper())


def write_outcome(outcome: Outcome, *, stage: bool = False) -> None:
    """One line on how the current request ended.

    Args:
        outcome: how.
        stage: the request was one of a pipeline's many calls, which is for those who ask for details.
    """
    usual = logging.DEBUG if stage else logging.INFO
    seconds = dict(outcome.seconds)
    fields = {
        "outcome": outcome.status,
        "seconds": seconds.pop("total", 0.0),
        "steps": outcome.steps,
        "stages": seconds,
    }
    log.log(_LEVELS.get(outcome.status, usual), REQUEST, extra={"fields": fields})


@dataclass(frozen=True)
class _Source:
    model: str
    instance: str
    secrets: tuple[str, ...]

    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        """What a line says, in the order in which it says it."""
        when = datetime.fromtimestamp(record.created, UTC)
        fields = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "model": self.model,
            "instance": self.instance,
            "request_id": _current.id,
        }
        if hasattr(record, "fields"):
            return {**fields, "event": REQUEST, **record.fields}
        message = record.getMessage()
        if record.name.partition(".")[0] != OURS:
            message = f"{record.name}: {self._harmless(message)}"
        fields |= {"event": MESSAGE, "message": message}
        if record.exc_info and record.exc_info[1]:
            fields["exception"] = self._exception(record.exc_info[1])
        return fields

    def _exception(self, error: BaseException) -> str:
        """Where it happened and what it is, its causes first; without the lines of code, which are in the file."""
        chained = error.__cause__ or error.__context__
        before = f"{self._exception(chained)}\n" if chained else ""
        frames = (
            f"{frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
        )
        said = self._harmless(str(error))
        return f"{before}{type(error).__name__}: {said} at " + " > ".join(frames)

    def _harmless(self, message: str) -> str:
        """A message that we haven't written, unless it may hold what no line may."""
        repeats = not message.isascii() or not _current.words.isdisjoint(_words([message]))
        secret = any(secret in message for secret in self.secrets)
        return WITHHELD if repeats or secret else message


class _Formatter(logging.Formatter):
    def __init__(self, source: _Source, write: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._source, self._write = source, write

    def format(self, record: logging.LogRecord) -> str:
        return self._write(self._source.fields(record))


def _as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, default=str)


def _as_text(fields: dict[str, Any]) -> str:
    asked = f" [{fields['request_id']}]" if fields["request_id"] else ""
    head = f"{fields['time']} {fields['level']} {fields['model']}{asked}"
    if fields["event"] == REQUEST:
        steps = f", {fields['steps']} steps" if fields["steps"] else ""
        return f"{head} request {fields['outcome']} after {fields['seconds']:.3f} s{steps}"
    # what follows the first line of a message is set in, so that nothing in it looks like a line of its own
    why = f"\n{fields['exception']}" if "exception" in fields else ""
    return f"{head} {fields['message']}{why}".replace("\n", "\n  ")
