# SPDX-License-Identifier: Apache-2.0
"""Counters of our own on Triton's metrics endpoint."""

from collections.abc import Callable
from typing import Any

from predict2_spec.guardrails import Verdict


def blocked_counter(pb_utils: Any) -> Callable[[Verdict], None]:
    """A function that counts a refusal, by what was refused, which guardrail did and why."""
    family = pb_utils.MetricFamily(
        name="predict2_blocked_total",
        description="Requests that a guardrail refused",
        kind=pb_utils.MetricFamily.COUNTER,
    )
    counters: dict[tuple[str, str, str], Any] = {}

    def count(verdict: Verdict) -> None:
        key = verdict.subject, verdict.check, verdict.category
        if key not in counters:
            labels = dict(zip(("subject", "check", "category"), key, strict=True))
            counters[key] = family.Metric(labels=labels)
        counters[key].increment(1)

    return count
