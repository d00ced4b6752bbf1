# SPDX-License-Identifier: Apache-2.0
"""How large a denoiser's inputs get: measured once, kept as JSON, and good for engines built anywhere."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from predict2_export.networks.fp8 import scale_of
from predict2_spec.errors import CheckpointError, InvalidRequestError
from predict2_spec.manifest import read_typed

FORMAT = 1  # raised when a field changes its meaning
MARGIN = 0.1  # a prompt that wasn't measured may reach somewhat higher


def check_margin(margin: float) -> None:
    """Refuse a margin that makes no sense.

    Raises:
        InvalidRequestError: it does.
    """
    if not 0 <= margin <= 1:
        raise InvalidRequestError(f"margin {margin} must be between 0 and 1")


@dataclass(frozen=True)
class Calibration:
    """What was measured, on what."""

    preset: str
    network: str  # the stage: text2image_denoiser or video2world_denoiser
    checkpoint_sha256: str  # over the files of its weights, an adapter included
    prompts: tuple[str, ...]
    num_steps: int  # of every generation; one clean pass followed
    margin: float  # the share that is added to `amax`
    modelopt: str  # the version that measured
    amax: dict[str, float]  # layer -> largest magnitude of its input
    layers: tuple[
        str, ...
    ] = ()  # in FP8 in the engine that this lies beside; of no engine yet: none
    format: int = FORMAT

    def input_scales(self, layers: Iterable[str]) -> dict[str, float]:
        """The scale of each layer's input, exact in bfloat16.

        Raises:
            CheckpointError: a layer wasn't measured, or its input was no number.
        """
        layers = list(layers)
        unusable = [name for name in layers if not self.amax.get(name, math.nan) >= 0]
        if unusable:
            raise CheckpointError(
                f"the calibration of {self.network} says nothing of {len(unusable)} layers, such as {unusable[0]}; "
                "calibrate again with predict2-export calibrate"
            )
        scales = {
            name: scale_of(torch.tensor(self.amax[name] * (1 + self.margin))).item()
            for name in layers
        }
        if endless := [name for name, scale in scales.items() if not math.isfinite(scale)]:
            raise CheckpointError(
                f"the calibration of {self.network} has {self.amax[endless[0]]:g} as the largest input of {endless[0]}, "
                "for which there is no scale; calibrate again with predict2-export calibrate, and if this stays look at "
                "the checkpoint"
            )
        return scales

    def check(self, network: str, checkpoint_sha256: str, source: str) -> None:
        """Refuse what was measured on other weights.

        Args:
            network: the stage that is built.
            checkpoint_sha256: of its weights.
            source: what the message of an error calls the calibration, such as its path.

        Raises:
            CheckpointError: it was.
        """
        if self.network != network or self.checkpoint_sha256 != checkpoint_sha256:
            raise CheckpointError(
                f"{source} was measured on {self.network} of preset {self.preset} with checkpoint "
                f"{self.checkpoint_sha256:.12}, and {network} is built from {checkpoint_sha256:.12}; calibrate again "
                "with predict2-export calibrate, on the same files and flags as the build"
            )

    def to_json(self) -> str:
        """The text of a calibration file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        CheckpointError: it is missing, damaged or of another format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise CheckpointError(
                f"{path} is a calibration of format {values['format']} and this software reads {FORMAT}; calibrate again"
            )
        found: Calibration = read_typed(Calibration, values, "it")
        check_margin(found.margin)
        return found
    except (OSError, ValueError, KeyError, TypeError, RecursionError, InvalidRequestError) as error:
        raise CheckpointError(
            f"{path} can't be read as a calibration ({error}); make one with predict2-export calibrate"
        ) from error
