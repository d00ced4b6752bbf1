# SPDX-License-Identifier: Apache-2.0
"""The model `tracking`: how far a request is, that somebody still waits for it, its result, and stopping it."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from predict2_spec.errors import InvalidRequestError, ServerUnavailableError
from predict2_spec.tensors import MEDIA, METADATA
from predict2_spec.tracking import ACTIONS, check_request_id

from .following import StateFolder
from .kept import Outputs
from .progress import Progress
from .stages import Arrays

log = logging.getLogger(__name__)

_TIDY_EVERY_S = 10  # callers ask often


def tracking_handler(state: StateFolder | None) -> Callable[[Arrays, Progress], Outputs]:
    """The handler of the Triton model `tracking`; `state` is where requests are followed."""
    tidied = -math.inf

    def answer(arrays: Arrays, progress: Progress) -> Outputs:
        nonlocal tidied
        request_id = _one_text("request_id", arrays["request_id"])
        action = _one_text("action", arrays.get("action", ["look"]))
        check_request_id(request_id)
        if action not in ACTIONS:
            raise InvalidRequestError(
                f"action {action!r:.40} is unknown; choose one of {', '.join(ACTIONS)}"
            )
        if state is None:
            raise ServerUnavailableError(
                "this server follows no requests; one that predict2-serve starts does"
            )
        if time.monotonic() - tidied > _TIDY_EVERY_S:
            tidied = time.monotonic()
            try:
                state.tidy()
            except OSError as error:
                log.warning("what is kept too long can't be removed: %s", error)
        return _answer(state, request_id, action)

    return answer


def _answer(state: StateFolder, request_id: str, action: str) -> Outputs:
    if action == "cancel":
        state.cancel(request_id)
    elif action != "look":
        state.renew(request_id)
    known, outputs = state.look(request_id, fetch=action == "fetch")
    made: Outputs = {t.name: outputs[t.name] for t in (MEDIA, METADATA) if t.name in outputs}
    return {"state": known.to_json(), **made}


def _one_text(name: str, values: Any) -> str:
    if len(values) != 1:
        raise InvalidRequestError(f"{name} holds {len(values)} values; give one")
    return str(values[0])
