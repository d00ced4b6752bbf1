# SPDX-License-Identifier: Apache-2.0
"""The denoiser as an engine: one evaluation of the network."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import DitSpec
from predict2_spec.video import PATCH

from .dit import DitWeights, Modulations, Prepared, Text
from .kept import Kept, Savings
from .recording import Recordings
from .rotary import Rotation


class TorchDit:
    """An Engine of a denoiser: `hidden_states`, `timestep`, `encoder_hidden_states`, `condition_mask` -> `velocity`.

    Args:
        weights: on the device and of the dtype to compute in; or what is kept of them, to share it.
        recorded: CUDA graphs to keep, one for a shape each; 0 launches every kernel by itself.
        savings: what to do once, if it wasn't said yet.
    """

    def __init__(
        self, weights: DitWeights | Kept, recorded: int = 0, savings: Savings | None = None
    ) -> None:
        self.kept = weights if isinstance(weights, Kept) else Kept(weights, savings)
        self._recordings = Recordings(recorded)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what it takes."""
        names = ("hidden_states", "timestep", "encoder_hidden_states")
        return (*names, "condition_mask") if self.kept.weights.spec.condition_mask else names

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """One evaluation; tensors of other types are cast.

        Args:
            inputs: `hidden_states` [B, 16, T, H, W], `timestep` [B, T], `encoder_hidden_states` [B, M, text width] and,
                for networks that have it, `condition_mask` [B, 1, T, H, W]; all on one device.

        Returns:
            `velocity` [B, 16, T, H, W] in the network's dtype.

        Raises:
            InvalidRequestError: a name or a shape is none of these, or larger than the network takes.
        """
        kept = self.kept
        if inputs.keys() != set(self.inputs):
            raise InvalidRequestError(
                f"the denoiser takes {sorted(self.inputs)}, not {sorted(inputs)}"
            )
        check_shapes(kept.weights.spec, {name: tuple(inputs[name].shape) for name in self.inputs})
        x, times, embeds, *masks = (
            inputs[name].to(kept.device, kept.dtype) for name in self.inputs
        )
        same = torch.stack([(t == t[:1]).all() for t in (x, times, *masks)]).all()
        text, values = kept.read(embeds, torch.cat([same[None].double(), times.flatten().double()]))
        shared = bool(values[0]) and len(x) > 1 and kept.savings.shared_start
        distinct = tuple(dict.fromkeys(values[1:]))
        index = torch.tensor([distinct.index(t) for t in values[1:]], device=kept.device)
        rows = kept.modulations(distinct).at(index)
        run = partial(_velocity, kept, kept.rotation(grid_of(x.shape)), text.rows, shared)
        (velocity,) = self._recordings(
            run,
            (x, rows.sublayers, rows.final, *masks),
            (text.keys, text.values),
            (text.rows.start, text.rows.stop, shared),
        )
        return {"velocity": velocity}


def _velocity(  # of tensors, as recordings take them
    kept: Kept, rotation: Rotation, rows: slice, shared: bool,
    x: Tensor, sublayers: Tensor, final: Tensor, *rest: Tensor,
) -> tuple[Tensor]:  # fmt: skip
    *masks, keys, values = rest
    mask = masks[0] if masks else None
    of_times, text = Modulations(sublayers, final), Text(rows, keys, values)
    return (kept.evaluate(Prepared(x, mask, of_times, text, rotation, shared)),)


def grid_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens of latents [..., T, H, W]."""
    return shape[-3], shape[-2] // PATCH, shape[-1] // PATCH


def check_shapes(spec: DitSpec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse inputs of one evaluation that the network doesn't take; a grid too large, its rotary tables refuse.

    Raises:
        InvalidRequestError: a shape is another than latents and text width make it.
    """
    latents, text = shapes["hidden_states"], shapes["encoder_hidden_states"]
    batch, frames = latents[0], latents[2] if len(latents) == 5 else 0
    expected = {
        "hidden_states": (batch, spec.patch_outputs // PATCH**2, *latents[2:]),
        "timestep": (batch, frames),
        "encoder_hidden_states": (batch, text[1] if len(text) == 3 else 0, spec.text_width),
        "condition_mask": (batch, 1, *latents[2:]),
    }
    for name, shape in shapes.items():
        if shape != expected[name] or 0 in shape:
            raise InvalidRequestError(
                f"{name} is {list(shape)} and must be {list(expected[name])}, no size of them 0"
            )
    if any(size % PATCH for size in latents[3:]):
        raise InvalidRequestError(
            f"latents of {list(latents[3:])} can't be cut into patches; both sides must be even"
        )
