# SPDX-License-Identifier: Apache-2.0
"""The denoiser as an engine: what doesn't change from call to call is computed once and kept, within bounds.

Losing any of it costs time. Nothing is taken for the same because of where it lies: what depends on the prompts is kept
with the embeddings it was made of, and found again by comparing all their numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.video import PATCH

from .dit import DitWeights, Modulations, Prepared, Text, evaluate, modulations, read_text
from .recording import Recordings
from .rotary import rotation

Tensors = dict[str, Tensor]

_GRIDS = 8  # rotary tables, a megabyte at most each
_TIMES = (
    64  # modulations of the times of a step: 36 steps of a schedule and some; 2 MB each for the 2B
)
_PROMPTS = 2  # pairs of prompts; 0.2 GB each for the 2B, 0.8 GB for the 14B


@dataclass(frozen=True)
class Savings:
    """What is computed once instead of for every row; all of it exact. For tests and measurements to turn off."""

    shared_start: bool = (
        True  # of rows that differ by their text alone, up to the first cross-attention
    )
    zero_text: bool = True  # cross-attention with a text of zeros is zero
    kept: bool = True  # modulations, keys and values of prompts, rotary tables


@dataclass(frozen=True)
class Facts:
    """What has to be known of the inputs' numbers before work is queued."""

    times: tuple[float, ...]  # of every frame of every row
    shared: bool
    rows: slice  # of the batch, which have text
    kept: "KeptText | None"  # of the same prompts


@dataclass(frozen=True)
class KeptText:
    """Keys and values, and the embeddings [B, M, text width] that they were made of."""

    embeds: Tensor
    text: Text


class TorchDit:
    """An Engine of a denoiser: `hidden_states`, `timestep`, `encoder_hidden_states`, `condition_mask` -> `velocity`.

    Args:
        weights: on the device and of the dtype to compute in.
        recorded: CUDA graphs to keep, one for a shape each; 0 launches every kernel by itself.
        savings: what to compute once.
    """

    def __init__(
        self, weights: DitWeights, recorded: int = 0, savings: Savings | None = None
    ) -> None:
        self._weights = weights
        self._savings = savings or Savings()
        self._dtype, self._device = weights.patch.dtype, weights.patch.device
        self._recordings = Recordings(partial(evaluate, weights), recorded) if recorded else None
        self._prompts: list[KeptText] = []  # the latest last
        keeping = self._savings.kept
        self._rotation = lru_cache(_GRIDS if keeping else 0)(
            partial(rotation, weights.spec, device=self._device)
        )
        self._modulations = lru_cache(_TIMES if keeping else 0)(self._make_modulations)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes."""
        names = ("hidden_states", "timestep", "encoder_hidden_states")
        return (*names, "condition_mask") if self._weights.spec.condition_mask else names

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Tensors:
        """One evaluation; tensors of other types are cast.

        Args:
            inputs: `hidden_states` [B, 16, T, H, W], `timestep` [B, T], `encoder_hidden_states` [B, M, text width] and,
                for networks that have it, `condition_mask` [B, 1, T, H, W]; all on one device.

        Returns:
            `velocity` [B, 16, T, H, W] in the network's dtype.

        Raises:
            InvalidRequestError: a name or a shape is none of these, or larger than the network takes.
        """
        self._check(inputs)
        x, times, embeds, *masks = (
            inputs[name].to(self._device, self._dtype) for name in self.inputs
        )
        facts = self._look(x, times, embeds, masks)
        frames, height, width = x.shape[2:]
        distinct = tuple(dict.fromkeys(facts.times))
        index = torch.tensor([distinct.index(t) for t in facts.times], device=self._device)
        prepared = Prepared(
            x,
            masks[0] if masks else None,
            self._modulations(distinct).at(index),
            self._text(embeds, facts),
            self._rotation((frames, height // PATCH, width // PATCH)),
            facts.shared,
        )
        if self._recordings:
            return {"velocity": self._recordings(prepared)}
        return {"velocity": evaluate(self._weights, prepared)}

    def _look(self, x: Tensor, times: Tensor, embeds: Tensor, masks: list[Tensor]) -> Facts:
        """Read what has to be known from the device, all at once: it waits for the GPU."""
        same = [(t == t[:1]).all() for t in (x, times, *masks)]
        zero = [~row.any() for row in embeds]
        known = [k for k in self._prompts if k.embeds.shape == embeds.shape]
        equal = [(k.embeds == embeds).all() for k in known]
        flags = torch.stack([*same, *zero, *equal])
        values = torch.cat([flags.double(), times.flatten().double()]).tolist()
        shared = all(values[: len(same)]) and len(x) > 1 and self._savings.shared_start
        is_zero = values[len(same) : len(same) + len(zero)]
        is_equal = values[len(same) + len(zero) : len(flags)]
        return Facts(
            times=tuple(values[len(flags) :]),
            shared=shared,
            rows=_span([not z for z in is_zero] if self._savings.zero_text else [True] * len(x)),
            kept=next((k for k, e in zip(known, is_equal, strict=True) if e), None),
        )

    def _make_modulations(self, times: tuple[float, ...]) -> Modulations:
        exact = torch.tensor(times, dtype=torch.float64, device=self._device)
        return modulations(self._weights, exact.to(self._dtype))

    def _text(self, embeds: Tensor, facts: Facts) -> Text:
        if not self._savings.kept:
            return read_text(self._weights, embeds, facts.rows)
        # A copy, because a caller may write over its own.
        found = facts.kept
        if found is None:
            del self._prompts[: len(self._prompts) - _PROMPTS + 1]  # before the memory is needed
            found = KeptText(embeds.clone(), read_text(self._weights, embeds, facts.rows))
        self._prompts = [*(k for k in self._prompts if k is not found), found]
        return found.text

    def _check(self, inputs: Mapping[str, Any]) -> None:
        if inputs.keys() != set(self.inputs):
            raise InvalidRequestError(
                f"the denoiser takes {sorted(self.inputs)}, not {sorted(inputs)}"
            )
        spec = self._weights.spec
        latents, text = inputs["hidden_states"].shape, inputs["encoder_hidden_states"].shape
        batch, frames = latents[0], latents[2] if len(latents) == 5 else 0
        expected = {
            "hidden_states": (batch, spec.patch_outputs // PATCH**2, *latents[2:]),
            "timestep": (batch, frames),
            "encoder_hidden_states": (batch, text[1] if len(text) == 3 else 0, spec.text_width),
            "condition_mask": (batch, 1, *latents[2:]),
        }
        for name in self.inputs:
            shape = tuple(inputs[name].shape)
            if shape != expected[name] or 0 in shape:
                raise InvalidRequestError(
                    f"{name} is {list(shape)} and must be {list(expected[name])}, no size of them 0"
                )
        if any(size % PATCH for size in latents[3:]):
            raise InvalidRequestError(
                f"latents of {list(latents[3:])} can't be cut into patches; both sides must be even"
            )


def _span(wanted: list[bool]) -> slice:
    """The shortest slice with everything that is wanted."""
    found = [index for index, value in enumerate(wanted) if value]
    return slice(found[0], found[-1] + 1) if found else slice(0, 0)
