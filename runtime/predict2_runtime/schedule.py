# SPDX-License-Identifier: Apache-2.0
"""Noise levels and solver weights, as plain float64 numbers.

The original integrates the rectified flow in its variance-exploding form x = x0 + sigma * noise with a
second-order exponential Adams-Bashforth rule. Every update of it (and of diffusers' Euler rule) is linear in
the state and the last two predictions, so a whole schedule is a table of weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from predict2_spec.requests import Solver

SIGMA_MAX = 80.0
SIGMA_MIN = 0.002
RHO = 7.0
CONDITION_SIGMA = 1e-4  # noise level the network is told for frames that are given
DISTILLED_SIGMAS = (SIGMA_MAX, 3.6, 1.5574, 0.684)  # the levels a distilled network was trained for


@dataclass(frozen=True)
class Step:
    """x' = keep * x + now * x0 + before * x0_before, with x0 the guided prediction at sigma.

    Then `noise` times a fresh standard normal is added.
    """

    sigma: float
    keep: float
    now: float
    before: float = 0.0
    noise: float = 0.0

    def numbers(self, guidance: float) -> dict[str, float]:
        """What an engine of whole steps takes beside tensors: the network's time, the scale, and the weights."""
        weights = {"keep": self.keep, "now": self.now, "before": self.before}
        return {"time": flow_time(self.sigma), "guidance": guidance, **weights}


def karras_sigmas(count: int) -> list[float]:
    """`count` noise levels from 80 down to 0.002, evenly spaced in sigma**(1/7).

    Karras et al. 2022 (arXiv:2206.00364), equation 5.
    """
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    last = max(count - 1, 1)
    return [float((high + i / last * (low - high)) ** RHO) for i in range(count)]


def flow_time(sigma: float) -> float:
    """The network's time in [0, 1) for a noise level: sigma / (sigma + 1)."""
    return sigma / (sigma + 1.0)


def euler_step(sigma: float, following: float) -> Step:
    """First order: from `sigma` to `following` along the line from x through x0."""
    return Step(sigma, keep=following / sigma, now=1.0 - following / sigma)


def adams_bashforth_step(previous: float, sigma: float, following: float) -> Step:
    """Second order, in t = -ln(sigma), with the prediction of one step before.

    With h the step in t and c the (negative) distance to the step before in units of h:
    phi1 = (1 - exp(-h)) / h, phi2 = (1 - phi1) / h, and the weights are h (phi1 - phi2/c) and h phi2/c.
    """
    h = math.log(sigma / following)
    c = math.log(sigma / previous) / h
    phi1 = -math.expm1(-h) / h
    phi2 = (1.0 - phi1) / h
    return Step(sigma, keep=math.exp(-h), now=h * (phi1 - phi2 / c), before=h * phi2 / c)


def _adams_bashforth(sigmas: Sequence[float]) -> list[Step]:
    first = euler_step(sigmas[0], sigmas[1])
    rest = [adams_bashforth_step(*sigmas[i - 1 : i + 2]) for i in range(1, len(sigmas) - 1)]
    # The answer is one more prediction at the lowest noise level, not an update.
    clean = Step(sigmas[-1], keep=0.0, now=1.0)
    return [first, *rest, clean]


def _distilled(num_steps: int) -> list[Step]:
    """Predict, put less noise back, predict again: the sampler of consistency models.

    Song et al. 2023 (arXiv:2303.01469), algorithm 1.
    """
    sigmas = (*DISTILLED_SIGMAS[:num_steps], 0.0)
    return [Step(a, keep=0.0, now=1.0, noise=b) for a, b in pairwise(sigmas)]


@lru_cache(maxsize=64)
def solver_steps(num_steps: int, solver: Solver = "ab2") -> tuple[Step, ...]:
    """The steps of a whole generation; each costs one guided prediction.

    Args:
        num_steps: 1 or more. `ab2` makes that many updates and then the clean pass (num_steps + 1 entries);
            `euler` visits that many noise levels as diffusers does, the last of which needs no prediction
            (num_steps - 1 entries, at least one). `distilled` takes 1 to 4.
        solver: `ab2` is the original's rule, `euler` is diffusers', for comparison; `distilled` is the rule of
            distilled networks.
    """
    if solver == "distilled":
        return tuple(_distilled(num_steps))
    if solver == "ab2":
        return tuple(_adams_bashforth(karras_sigmas(num_steps + 1)))
    sigmas = karras_sigmas(max(num_steps, 2))
    return tuple(euler_step(a, b) for a, b in pairwise(sigmas))
