# SPDX-License-Identifier: Apache-2.0
"""Callers that ask without a pause, and what became of each request."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from predict2_client import Client
from predict2_spec.errors import Predict2Error, in_words

MOST_STEPS = 20_000
_TRIED = 100


@dataclass(frozen=True)
class Asked:
    """One request; times of time.monotonic()."""

    caller: str
    began: float
    ended: float
    retries: tuple[str, ...] = ()  # why it was sent again, each time
    error: str = ""


class Callers:
    """Threads that each send request after request, until the block is left; a context manager."""

    def __init__(
        self, open_with: Mapping[str, Any], retry_for_s: float, steps: Mapping[str, int]
    ) -> None:
        """`open_with`: of a Client; `steps`: solver steps of each caller's requests, by its name."""
        self.asked: list[Asked] = []
        self._over = threading.Event()
        self._open = {**open_with, "retry_for_s": retry_for_s}
        self._threads = [
            threading.Thread(target=self._ask_on, args=item, daemon=True) for item in steps.items()
        ]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, caller: str, steps: int) -> None:
        retries: list[str] = []

        def on_retry(error: Predict2Error, pause_s: float) -> None:
            retries.append(type(error).__name__)

        with Client(**self._open, on_retry=on_retry) as client:
            seed = 0
            while not self._over.is_set():
                seed += 1
                began = time.monotonic()
                ask = self._unary if seed % 2 else self._streamed
                error = ""
                try:
                    ask(client, steps, seed)
                except Predict2Error as failure:
                    error = f"{type(failure).__name__}: {in_words(failure)}"
                self.asked.append(Asked(caller, began, time.monotonic(), tuple(retries), error))
                retries.clear()

    @staticmethod
    def _unary(client: Client, steps: int, seed: int) -> None:
        client.text2image(prompt="a red ball", num_steps=steps, seed=seed)

    @staticmethod
    def _streamed(client: Client, steps: int, seed: int) -> None:
        client.text2image(prompt="a red ball", num_steps=steps, seed=seed, on_event=lambda e: None)


def steps_that_take(seconds: float, client: Client) -> int:
    """How many solver steps of a picture take this machine about so long."""
    client.text2image(prompt="a red ball", num_steps=_TRIED)  # the first is slower
    began = time.monotonic()
    client.text2image(prompt="a red ball", num_steps=_TRIED)
    return min(MOST_STEPS, int(_TRIED * seconds / (time.monotonic() - began)))


def wait_for(what: Callable[[], bool], within_s: float, why: str) -> None:
    """Return as soon as that holds; TimeoutError if it doesn't."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{why}: not within {within_s:g} s")
        time.sleep(0.02)
