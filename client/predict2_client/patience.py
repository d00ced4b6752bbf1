# SPDX-License-Identifier: Apache-2.0
"""How long a client tries again, and after what pauses."""

import random
import time
from dataclasses import dataclass, field

from .failures import Trouble

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
# A request that nobody knows any more after its connection broke may be what broke it.
RESENDS = 2


def pause_s(attempt: int) -> float:
    """The pause after attempt 0, 1, ...: twice as long each time, up to a limit, and never the same for all clients."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 10))
    return longest * random.uniform(0.5, 1.0)


@dataclass
class Patience:
    """What one request still has of it."""

    retry_for_s: float
    _since: float = field(default_factory=time.monotonic)
    _attempts: int = 0
    _resends: int = 0

    def next_pause_s(self, trouble: Trouble, *, safe: bool) -> float | None:
        """How long to wait before the next attempt; None: that was the last.

        Args:
            trouble: how the last one failed.
            safe: the server keeps a request of the same id from running twice.
        """
        pause = pause_s(self._attempts)
        self._attempts += 1
        if trouble in ("busy", "away"):
            spent = time.monotonic() - self._since
            return pause if spent + pause <= self.retry_for_s else None
        allowed = self.retry_for_s or safe if trouble == "lost" else self.retry_for_s
        if trouble not in ("lost", "no model") or not allowed or self._resends == RESENDS:
            return None
        self._resends += 1
        return pause
