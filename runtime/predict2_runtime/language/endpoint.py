# SPDX-License-Identifier: Apache-2.0
"""A language model behind an OpenAI-compatible endpoint, such as vLLM's or a NIM's."""

import base64
import http.client
import json
import logging
import os
import socket
import threading
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, urlsplit

from predict2_runtime.frames import Frames, encode_image
from predict2_runtime.policy import LanguageModel
from predict2_spec.errors import EngineMismatchError, ServerError, ServerUnavailableError

from . import Ask, Question, plain_text
from .vision import shown

log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 1024 * 1024
_OVERLOADED = (429, 502, 503, 504)
# What Unicode's own compatibility forms don't bring to ASCII, and language models like to write.
_PUNCTUATION = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-"})  # noqa: RUF001


def open_endpoint(where: LanguageModel) -> Ask:
    """The language model behind `where.url`; nothing is sent yet.

    Raises:
        EngineMismatchError: the URL, or the key in the environment, can't be used.
    """
    key = _read_key(os.environ, where.key_variable) if where.key_variable else ""
    return _Endpoint(where, _parse(where.url), key)


def _parse(url: str) -> SplitResult:
    with suppress(ValueError):  # the host is no address, or the port no number
        parts = urlsplit(url)
        plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc
        if plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts
    shown_url = url.rpartition("@")[2].partition("?")[0]  # without what might be secret
    raise EngineMismatchError(
        f"the endpoint {shown_url!r:.200} must be http(s)://HOST[:PORT]/PATH, such as "
        "http://127.0.0.1:9000/v1; a key belongs in the environment"
    )


def _read_key(environment: Mapping[str, str], variable: str) -> str:
    key = environment.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise EngineMismatchError(
            f"{variable} holds characters that no HTTP header can; set it again"
        )
    return key


@dataclass(frozen=True)
class _Endpoint:
    where: LanguageModel
    parts: SplitResult = field(repr=False)
    key: str = field(repr=False)  # never logged, never in a message

    def __call__(self, question: Question, frames: Frames | None, fps: float) -> list[str]:
        deadline = time.monotonic() + self.where.timeout_s
        body = _body(self.where.model, question, frames, fps)
        # The likeliest answer is the same however often it's asked for, and vLLM refuses to repeat it.
        wanted = question.num_responses if question.temperature else 1
        answers: list[str] = []
        while len(answers) < wanted:  # some endpoints give one answer, whatever n says
            rest = {"n": wanted - len(answers), "seed": question.seed + len(answers)}
            answers += self._read(*self._post(json.dumps(body | rest).encode(), deadline))
        if question.ascii_only:
            answers = [_to_ascii(answer) for answer in answers]
        return answers[:wanted] if question.temperature else answers[:1] * question.num_responses

    def _post(self, body: bytes, deadline: float) -> tuple[int, bytes]:
        """Status and body of the answer; no redirect is followed, so the key goes nowhere else."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        secure = self.parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(str(self.parts.hostname), self.parts.port, timeout=left)
        try:
            connection.connect()
            with _hung_up_at(deadline, connection.sock):
                connection.request("POST", self._path(), body, self._headers())
                response = connection.getresponse()
                answer = response.status, response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise self._too_slow() from error
            raise ServerUnavailableError(
                f"{self._name()} can't be reached ({str(error) or type(error).__name__}); "
                "start it, or have the server's owner name another one"
            ) from error
        finally:
            connection.close()
        if time.monotonic() >= deadline:  # then what was read may be but the beginning
            raise self._too_slow()
        return answer

    def _read(self, status: int, data: bytes) -> list[str]:
        """The texts in an answer; at least one."""
        if status != http.HTTPStatus.OK:
            raise self._refused(status)
        if len(data) > MAX_ANSWER_BYTES:
            raise ServerError(
                f"{self._name()} answered with more than {MAX_ANSWER_BYTES} bytes; ask for fewer "
                "responses or tokens"
            )
        try:
            texts = [choice["message"]["content"] for choice in json.loads(data)["choices"]]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._nonsense() from error
        if not texts or not all(isinstance(text, str) for text in texts):
            raise self._nonsense()
        return texts

    def _path(self) -> str:
        query = f"?{self.parts.query}" if self.parts.query else ""
        return f"{self.parts.path.rstrip('/')}/chat/completions{query}"

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        return headers | {"Authorization": f"Bearer {self.key}"} if self.key else headers

    def _name(self) -> str:
        return f"the language model {self.where.model}"  # callers needn't know where it is

    def _too_slow(self) -> ServerUnavailableError:
        return ServerUnavailableError(
            f"{self._name()} didn't answer within {self.where.timeout_s:g} s; try again later, or "
            "have the server's owner raise --language-timeout"
        )

    def _nonsense(self) -> ServerError:
        return ServerError(
            f"{self._name()} gave no OpenAI-style answer with choices and their texts; its address "
            "must be that of an OpenAI-compatible API, mostly ending in /v1"
        )

    def _refused(self, status: int) -> ServerError | ServerUnavailableError:
        # What it said stays here: it may repeat the prompt, or tell of the inside.
        log.warning("%s at %s answered %s", self._name(), self.parts.netloc, status)
        message = f"{self._name()} answered with status {status}"
        if status in _OVERLOADED:
            return ServerUnavailableError(f"{message}; try again later")
        if status in (401, 403):
            return ServerError(f"{message}; the server's owner sets its key in the environment")
        if 300 <= status < 400:
            return ServerError(f"{message}; redirects aren't followed, so name the final address")
        return ServerError(f"{message}; its own log may say more")


@contextmanager
def _hung_up_at(deadline: float, connected: socket.socket) -> Iterator[None]:
    """Ends a connection at a time. A socket's own limit starts again with every byte."""

    def hang_up() -> None:
        with suppress(OSError):  # it's over
            connected.shutdown(socket.SHUT_RDWR)

    watchdog = threading.Timer(deadline - time.monotonic(), hang_up)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def _body(model: str, question: Question, frames: Frames | None, fps: float) -> dict[str, Any]:
    system = [{"role": "system", "content": plain_text(question.system)}] if question.system else []
    settings: dict[str, Any] = {
        "max_tokens": question.max_new_tokens,
        "temperature": question.temperature,
        "top_p": question.top_p,
    }
    # Not OpenAI's own; vLLM and the NIMs know them, others may refuse them.
    if question.top_k:
        settings["top_k"] = question.top_k
    if question.repetition_penalty != 1:
        settings["repetition_penalty"] = question.repetition_penalty
    user = {"role": "user", "content": _content(question, frames, fps)}
    return {"model": model, "messages": [*system, user], **settings}


def _content(question: Question, frames: Frames | None, fps: float) -> Any:
    said = plain_text(question.text)
    if frames is None:
        return said
    pictures = [
        {"type": "image_url", "image_url": {"url": _data_url(picture)}}
        for picture in shown(frames, fps)
    ]
    if fps:
        line = f"The {len(frames)} pictures that follow are the frames of one video clip, in order, {fps:.3g} per second."
        pictures.insert(0, _text(line))
    text = [_text(said)]
    return pictures + text if question.frames_first else text + pictures


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _data_url(picture: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(encode_image(picture, "png")).decode()


def _to_ascii(text: str) -> str:
    """The text with its accents dropped, and with nothing left of what has no form in ASCII."""
    plain = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION))
    return plain.encode("ascii", "ignore").decode()
