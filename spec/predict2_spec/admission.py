# SPDX-License-Identifier: Apache-2.0
"""Who gets in and who waits: queues of the public models, and the words by which a refusal's kind is known."""

from .errors import (
    BusyError,
    EngineMismatchError,
    Predict2Error,
    RequestExpiredError,
    ServerUnavailableError,
)
from .tensors import BEST_OF_N, GENERATE, TASK_MODELS

# Stages have no bounded queue: a request that got in must not fail half way because others got in too.
PUBLIC_MODELS = (*TASK_MODELS, BEST_OF_N, GENERATE)

# Triton's request parameter `priority`. A lower level waits until no request of the higher one does. 0 or another
# number: as INTERACTIVE. Each level has a queue of its own.
INTERACTIVE, BATCH = 1, 2
QUEUE_SIZE = 16  # requests that wait for a public model, of each level
# Triton's request parameter `timeout`, in microseconds, can shorten this and can't lengthen it.
REQUEST_TIMEOUT_S = 3600.0
RETRY_S = 10.0  # when to try again after a busy answer; Triton doesn't say how long its queue takes

# Triton's own words, whatever stands around them; on a stream they come without a status.
_QUEUE_IS_FULL = "Exceeds maximum queue size"
_EXPIRED_IN_QUEUE = "Request timeout expired"
# By these words of a refusal a caller who sent a request again knows that the first is being worked on.
IS_RUNNING = "is running; ask the model tracking for its progress and result"
# Triton 2.51 tells a model that called another INTERNAL whatever the other one said; these words survive.
PREFIXES: dict[type[Predict2Error], str] = {  # subclasses before their parents
    BusyError: "busy: ",
    ServerUnavailableError: "unavailable: ",
    EngineMismatchError: "unavailable: ",  # to a caller it is no more than that
    RequestExpiredError: "expired: ",
}


def busy(reason: str, retry_s: float = RETRY_S) -> BusyError:
    """The error of a server that takes nothing more for now; `reason` says of what it has as much as it takes."""
    return BusyError(f"the server is busy: {reason}; try again in {retry_s:g} s")


def prefix_of(error: Predict2Error) -> str:
    """What stands before an error's message on the wire; empty where its status says enough."""
    return next((prefix for kind, prefix in PREFIXES.items() if isinstance(error, kind)), "")


def error_from_words(message: str) -> Predict2Error | None:
    """The error whose kind can be known from the message alone: by our prefix, or by Triton's own words."""
    for kind, prefix in PREFIXES.items():
        if message.startswith(prefix):
            return kind(message.removeprefix(prefix))
    if _QUEUE_IS_FULL in message:
        return busy("as many requests wait as it lets wait (predict2-serve --queue-size)")
    if _EXPIRED_IN_QUEUE in message:
        return RequestExpiredError(
            "the request's time limit passed before its turn came; allow it more time, or try again when fewer wait"
        )
    return None
