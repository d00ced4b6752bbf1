# SPDX-License-Identifier: Apache-2.0
"""How a caller follows a request beside the call that sent it: by its id, under a lease, until its result expires.

The id is the request id of the call itself (KServe's `id`). Whoever knows it may ask for the result, so it should be
hard to guess. A lease is a promise to say again and again that someone still waits: while it is kept, the work goes on
though the connection broke; when it isn't, the work stops, also where Triton can't see that a caller went away (HTTP).
"""

import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from .errors import InvalidRequestError
from .results import Event, Failure

LEASE_PARAMETER = "lease_s"  # of a request to a public model: whole seconds
# Of the same: true lets the lease begin only when Triton has lost the connection of the call, which renews it until
# then. For calls over gRPC; of HTTP ones Triton never notices that they are lost.
LEASE_WAITS_PARAMETER = "lease_waits"
MIN_LEASE_S, MAX_LEASE_S = 2, 3600
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{7,127}")

# look: say how far it is. renew: that too, and someone still waits. cancel: stop within a solver step. fetch: as
# renew, and the result if there is one.
Action = Literal["look", "renew", "cancel", "fetch"]
ACTIONS: tuple[Action, ...] = get_args(Action)
# unknown: not begun, or its result is kept no longer.
State = Literal["unknown", "running", "done", "failed"]


def check_request_id(request_id: str) -> None:
    """Refuse an id that can't be one.

    Raises:
        InvalidRequestError: it is too short or too long, or holds other characters than letters, digits, . _ and -.
    """
    if not REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError(
            f"request id {request_id!r:.160} must be 8 to 128 letters, digits, '.', '_' or '-', and begin with a "
            "letter or digit; a UUID will do"
        )


def is_meant(request_id: str) -> bool:
    """Whether an id can be meant for finding its request again: clients that know nothing of this number theirs."""
    return bool(REQUEST_ID.fullmatch(request_id)) and not request_id.isdigit()


@dataclass(frozen=True)
class RequestState:
    """How far a request is, as the model `tracking` tells it."""

    state: State
    event: Event | None = None  # the last one, while it runs
    failure: Failure | None = None  # why it failed; where it is done, why its result isn't kept
    kept_s: float = 0.0  # how long its result will be kept yet

    def to_json(self) -> str:
        """The state as it goes over the wire."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "RequestState":
        """Read a state; fields this version doesn't know are ignored."""
        values = json.loads(text)
        event, failure = values.get("event"), values.get("failure")
        return cls(
            values["state"],
            Event.from_json(json.dumps(event)) if event else None,
            Failure.from_json(json.dumps(failure)) if failure else None,
            float(values.get("kept_s", 0.0)),
        )
