# SPDX-License-Identifier: Apache-2.0
"""What of a denoiser doesn't change from call to call: computed once and kept, within bounds.

Losing any of it costs time. Nothing is taken for the same because of where it lies: what depends on the prompts is kept
with the embeddings it was made of, and found again by comparing all their numbers.
"""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from .dit import DitWeights, Modulations, Prepared, Text, evaluate, modulations, read_text
from .rotary import rotation

_GRIDS = 8  # rotary tables, a megabyte at most each
_TIMES = (
    64  # modulations of the times of a step: 36 steps of a schedule and some; 2 MB each for the 2B
)
_PROMPTS = 2  # pairs of prompts; 0.2 GB each for the 2B, 0.8 GB for the 14B


@dataclass(frozen=True)
class Savings:
    """What is done once instead of for every row; all of it exact. For tests and measurements to turn off."""

    shared_start: bool = (
        True  # of rows that differ by their text alone, up to the first cross-attention
    )
    zero_text: bool = True  # cross-attention with a text of zeros is zero
    kept: bool = True  # modulations, keys and values of prompts, rotary tables
    batched: bool = True  # all rows go through a layer together; else row by row, sharing no start


@dataclass(frozen=True)
class KeptText:
    """Keys and values, and the embeddings [B, M, text width] that they were made of."""

    embeds: Tensor
    text: Text


class Kept:
    """A denoiser's weights and what was made of them, for all that computes with them.

    Args:
        weights: on the device and of the dtype to compute in.
        savings: what to do once.
    """

    def __init__(self, weights: DitWeights, savings: Savings | None = None) -> None:
        self.weights = weights
        self.savings = savings or Savings()
        self.dtype, self.device = weights.patch.dtype, weights.patch.device
        self._prompts: list[KeptText] = []  # the latest last
        keeping = self.savings.kept
        # (frames, rows, columns of tokens) -> the tables
        self.rotation = lru_cache(_GRIDS if keeping else 0)(
            partial(rotation, weights.spec, device=self.device)
        )
        # times in the network's dtype -> their modulations, a row each
        self.modulations = lru_cache(_TIMES if keeping else 0)(self._make_modulations)

    def evaluate(self, inputs: Prepared) -> Tensor:
        """The velocity, all rows at once or one after the other."""
        if self.savings.batched:
            return evaluate(self.weights, inputs)
        return torch.cat([evaluate(self.weights, row) for row in inputs.by_row()])

    def read(self, embeds: Tensor, beside: Tensor) -> tuple[Text, list[float]]:
        """What cross-attention reads of prompts, and other numbers; it waits for the GPU, once.

        Args:
            embeds: [B, M, text width], of the network's dtype and on its device.
            beside: [n], float64; numbers that are asked for at the same time.
        """
        zero = [~row.any() for row in embeds]
        known = [k for k in self._prompts if k.embeds.shape == embeds.shape]
        equal = [(k.embeds == embeds).all() for k in known]
        flags = torch.stack([*zero, *equal])
        values = torch.cat([flags.double(), beside]).tolist()
        is_zero, is_equal = values[: len(zero)], values[len(zero) : len(flags)]
        rows = _span([not z for z in is_zero] if self.savings.zero_text else [True] * len(embeds))
        found = next((k for k, e in zip(known, is_equal, strict=True) if e), None)
        return self._text(embeds, rows, found), values[len(flags) :]

    def _text(self, embeds: Tensor, rows: slice, found: KeptText | None) -> Text:
        if not self.savings.kept:
            return read_text(self.weights, embeds, rows)
        if found is None:
            del self._prompts[: len(self._prompts) - _PROMPTS + 1]  # before the memory is needed
            # A copy, because a caller may write over its own.
            found = KeptText(embeds.clone(), read_text(self.weights, embeds, rows))
        self._prompts = [*(k for k in self._prompts if k is not found), found]
        return found.text

    def _make_modulations(self, times: tuple[float, ...]) -> Modulations:
        exact = torch.tensor(times, dtype=torch.float64, device=self.device)
        return modulations(self.weights, exact.to(self.dtype))


def _span(wanted: list[bool]) -> slice:
    """The shortest slice with everything that is wanted."""
    found = [index for index, value in enumerate(wanted) if value]
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)
