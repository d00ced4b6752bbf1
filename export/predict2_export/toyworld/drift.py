# SPDX-License-Identifier: Apache-2.0
"""How far a level's samples are from the exact level's, of the same prompts and seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .quality import Result, decibels

# What must hold of every task. Less is lost than by the toy's VAE, which keeps its clips at 36 dB.
MIN_PSNR_DB = 40.0  # of the median sample
MIN_COSINE = 0.995  # of the latents of the median sample
# Single samples do turn out otherwise, for better or worse, as with another seed. Of 100, five that are worse and none
# that is better happen by chance alone once in 32 times.
MAX_LOST_RATE = 0.05  # of samples in which the judge finds all that was asked for


@dataclass(frozen=True)
class Drift:
    """One task's samples at two levels, pair by pair."""

    exact: Result
    other: Result
    psnr_db: tuple[float, ...]  # between the frames of a pair
    cosine: tuple[float, ...]  # between their latents

    @property
    def lost_rate(self) -> float:
        """The share of samples in which the judge finds all that was asked for, at the exact level and not here."""
        good = [sum(a.all for a in result.agreements) for result in (self.exact, self.other)]
        return (good[0] - good[1]) / len(self.psnr_db)

    def problems(self) -> list[str]:
        """What is beyond the limits, in words."""
        found = []
        task, psnr_db, cosine = self.exact.task, median(self.psnr_db), median(self.cosine)
        if not psnr_db >= MIN_PSNR_DB:
            found.append(f"{task}: {psnr_db:.1f} dB between the frames, the limit is {MIN_PSNR_DB}")
        if not cosine >= MIN_COSINE:
            found.append(
                f"{task}: latents have a cosine of {cosine:.4f}, the limit is {MIN_COSINE}"
            )
        if self.lost_rate > MAX_LOST_RATE:
            found.append(
                f"{task}: {self.lost_rate:.1%} fewer samples show what was asked for, the limit is {MAX_LOST_RATE:.0%}"
            )
        return found


def drift(exact: Result, other: Result) -> Drift:
    """Compare two results; of the exact one, which may have more samples, the first ones."""
    count = len(other.clips)
    assert other.scenes == exact.scenes[:count]
    first = Result(exact.task, exact.split)
    for name in ("scenes", "clips", "latents", "agreements"):
        getattr(first, name).extend(getattr(exact, name)[:count])
    clips = zip(other.clips, first.clips, strict=True)
    latents = zip(other.latents, first.latents, strict=True)
    return Drift(
        first,
        other,
        tuple(decibels(*pair) for pair in clips),
        tuple(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in latents),
    )


def median(values: Sequence[float]) -> float:
    """Half of the values are no greater."""
    return statistics.median(values)


def lowest_tenth(values: Sequence[float]) -> float:
    """A tenth of the values are no greater."""
    return sorted(values)[max(len(values) // 10 - 1, 0)]
