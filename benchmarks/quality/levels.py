# SPDX-License-Identifier: Apache-2.0
"""The toy's level fp8 beside its level exact: the same prompts, the same seeds."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.results import ROOT
from predict2_export.build import build
from predict2_export.fp8.calibrate import DENOISERS, Measurement, read_prompts
from predict2_export.fp8.layers import DEFAULT_LAYERS
from predict2_export.fp8.recipe import Fp8Choice, fp8_recipes
from predict2_export.recipes import recipes
from predict2_export.torch_build import torch_choices
from predict2_export.toyworld.drift import Drift, drift, lowest_tenth, median
from predict2_export.toyworld.quality import (
    Networks,
    Result,
    judge_text2image,
    judge_text2world,
    judge_video2world,
)
from predict2_runtime.engines import open_engine
from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.presets import TOY

JUDGES = (judge_text2image, judge_video2world, judge_text2world)
RATES = ("look", "motion", "all")


def in_fp8(networks: Networks, checkpoints: Path, folder: Path) -> Networks:
    """The same networks with both denoisers at the level fp8; calibrations are kept in a folder."""
    choice = Fp8Choice(Measurement(read_prompts(TOY)), as_asked=True)
    found = fp8_recipes(TOY, recipes(TOY, checkpoints), choice, folder, _told)
    denoisers = {
        recipe.network.removesuffix("_denoiser"): recipe.module(recipe.weights())
        for recipe in found
        if recipe.precision == "fp8"
    }
    return replace(networks, **denoisers)


@dataclass(frozen=True)
class Opened:
    """An engine, called as the network is that it replaces."""

    run: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    inputs: tuple[str, ...]

    def __call__(self, *tensors: Tensor | None) -> Tensor:
        given = dict(zip(self.inputs, tensors, strict=False))
        return self.run(given)["velocity"]


def in_torch_fp8(networks: Networks, checkpoints: Path, folder: Path) -> Networks:
    """The same networks with both denoisers as torch engines of the level fp8, built and opened as a server's are."""
    choices = torch_choices("cpu", fp8=DEFAULT_LAYERS)
    opened: dict[str, Any] = {}
    for network in DENOISERS:
        build(TOY, checkpoints, ROOT / "model_repository", folder / "torch", _told, only=network, torch_choices=choices)  # fmt: skip
        engine = open_engine(folder / "torch" / network / VERSION_FOLDER, network).graphs["main"]
        opened[network.removesuffix("_denoiser")] = Opened(engine, engine.inputs)
    return replace(networks, **opened)


def _told(line: str) -> None:
    print(line, flush=True)


def drifts(exact: Sequence[Result], networks: Networks, count: int) -> Iterator[Drift]:
    """Each task's samples at the level fp8 beside those of the level exact."""
    for judge, result in zip(JUDGES, exact, strict=True):
        yield drift(result, judge(networks, count))


def values(found: Drift) -> dict[str, object]:
    """A task's numbers for the results file."""
    rates: dict[str, object] = {}
    for rate in RATES:
        if rate == "motion" and len(found.exact.clips[0]) == 1:
            continue  # a picture has none
        for level, result in (("exact", found.exact), ("fp8", found.other)):
            good, count, low, high = result.rate(rate)
            rates[f"{rate}_{level}"] = round(good / count, 4)
            rates[f"{rate}_{level}_95"] = [round(low, 3), round(high, 3)]
    return {
        "samples": len(found.psnr_db),
        **rates,
        "psnr_db": round(median(found.psnr_db), 2),
        "psnr_db_lowest_tenth": round(lowest_tenth(found.psnr_db), 2),
        "latent_cosine": round(median(found.cosine), 5),
        "latent_cosine_lowest_tenth": round(lowest_tenth(found.cosine), 5),
    }
