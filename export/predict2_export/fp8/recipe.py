# SPDX-License-Identifier: Apache-2.0
"""A denoiser with FP8 linears, as a recipe like any other: whoever lowers or builds it needn't know."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from torch import nn

from predict2_export.checkpoint.fp8 import quantized
from predict2_export.checkpoint.stored import StoredTensor
from predict2_export.installation import Report, check_files, digest
from predict2_export.networks.fp8 import quantize_linears
from predict2_export.recipes import Recipe
from predict2_export.toy import whole_file
from predict2_export.verify import Limits
from predict2_spec.errors import CheckpointError, InvalidRequestError
from predict2_spec.networks import DitSpec
from predict2_spec.presets import Preset

from .calibrate import DENOISERS, Measurement, calibrate
from .calibration import Calibration, read_calibration
from .layers import DEFAULT_LAYERS, Fp8Layers

# Engine and module differ as float32 does, by some 1e-6. Where that carries a number over the middle between two e4m3
# codes it moves by up to an eighth, and so do others after it. Of the toy's answers to 48 random inputs the furthest
# had a cosine of 0.9994 and an error of 0.05; a wrong scale is ten times as far.
FP8 = Limits(min_cosine=0.998, max_error=0.1)


@dataclass(frozen=True)
class Fp8Recipe(Recipe):
    """One denoiser to build in FP8."""

    exact: Recipe = field(kw_only=True)
    input_scales: Mapping[str, float] = field(kw_only=True)  # of every layer in FP8

    @property
    def choices(self) -> str:
        """Also the scales, and by their names the layers."""
        return f"{super().choices} {dict(self.input_scales)}"

    def weights(self) -> dict[str, StoredTensor]:
        """The values of the module's parameters, rounded to FP8 when they are read."""
        return quantized(self.exact.weights(), self.input_scales)


def fp8_recipe(exact: Recipe, calibration: Calibration, layers: Fp8Layers, source: str) -> Fp8Recipe:  # fmt: skip
    """The FP8 counterpart of a denoiser's recipe.

    Args:
        exact: the denoiser's.
        calibration: what was measured on its weights.
        layers: which of its layers are in FP8.
        source: what the message of an error calls the calibration, such as its path.

    Raises:
        CheckpointError: the calibration is another network's or says too little.
        InvalidRequestError: the choice of layers doesn't fit the network.
    """
    assert isinstance(exact.spec, DitSpec)
    return _fp8_recipe(exact, calibration, layers.names(exact.spec), source)


def installed_recipe(exact: Recipe, repository: Path) -> Fp8Recipe:
    """What the FP8 engine in a repository was made from.

    Args:
        exact: the denoiser's recipe.
        repository: what `build` or `engine` made.

    Raises:
        CheckpointError: its calibration is missing or damaged, or the denoiser has other weights now.
    """
    path = _kept(repository, exact)
    calibration = read_calibration(path)
    return _fp8_recipe(exact, calibration, calibration.layers, str(path))


def _kept(repository: Path, recipe: Recipe) -> Path:
    return repository / f"{recipe.network}.calibration.json"


def _fp8_recipe(
    exact: Recipe, calibration: Calibration, names: Sequence[str], source: str
) -> Fp8Recipe:
    calibration.check(exact.network, digest(exact.weight_files), source)
    same = {f.name: getattr(exact, f.name) for f in fields(exact)}
    own = {
        "make": partial(_quantized_network, exact, names),
        "limits": FP8,
        "precision": "fp8",
        "exact": exact,
        "input_scales": calibration.input_scales(names),
    }
    return Fp8Recipe(**(same | own))


def _quantized_network(exact: Recipe, names: Sequence[str]) -> nn.Module:
    return quantize_linears(exact.make(), names)


@dataclass(frozen=True)
class Fp8Choice:
    """The owner's wishes for the level `fp8`."""

    how: Measurement  # used where no calibration is given
    layers: Fp8Layers = DEFAULT_LAYERS
    calibrations: tuple[Path, ...] = ()  # each says which denoiser it is of


def fp8_recipes(
    preset: Preset,
    found: Sequence[Recipe],
    choice: Fp8Choice,
    folder: Path,
    report: Report,
    *,
    only: str = "",
) -> list[Recipe]:
    """A preset's recipes with its denoisers in FP8, which are measured where nobody has yet.

    Args:
        preset: what to serve.
        found: its recipes.
        choice: calibrations, or how to make them.
        folder: the repository; calibrations are kept in it, and found again. Made when it's missing.
        report: is told how far it is.
        only: leave all recipes but this stage's as they are.

    Raises:
        CheckpointError: a calibration is of other weights, or a file is missing or damaged.
        InvalidRequestError: a calibration is of no denoiser that is built.
        Predict2Error: there is something to measure and the quantizer isn't installed.
    """
    wanted = [r for r in found if r.network in DENOISERS and only in ("", r.network)]
    for recipe in wanted:
        recipe.check_lowerable()
    check_files(preset, wanted)
    given = _given(choice.calibrations, [recipe.network for recipe in wanted])
    made: dict[str, Recipe] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in wanted:
        calibration, source = given.get(recipe.network) or _own(
            preset, found, recipe, choice.how, folder, report
        )
        fp8 = fp8_recipe(recipe, calibration, choice.layers, source)
        beside = replace(calibration, layers=tuple(fp8.input_scales))
        with whole_file(_kept(folder, recipe)) as part:
            part.write_text(beside.to_json(), encoding="utf-8")
        made[recipe.network] = fp8
    return [made.get(recipe.network, recipe) for recipe in found]


def _given(paths: Sequence[Path], networks: Sequence[str]) -> dict[str, tuple[Calibration, str]]:
    """The owner's calibrations and their paths, by the network that each is of."""
    given: dict[str, tuple[Calibration, str]] = {}
    for path in paths:
        calibration = read_calibration(path)
        if calibration.network not in networks or calibration.network in given:
            raise InvalidRequestError(
                f"{path} is a calibration of {calibration.network:.40}, which isn't built here or has another file; "
                f"give one for each of {', '.join(networks) or 'no stage, as --only names none that has levels'}"
            )
        given[calibration.network] = calibration, str(path)
    return given


def _own(
    preset: Preset,
    found: Sequence[Recipe],
    recipe: Recipe,
    how: Measurement,
    folder: Path,
    report: Report,
) -> tuple[Calibration, str]:
    """A calibration made here before, or made now."""
    path = _kept(folder, recipe)
    with suppress(CheckpointError):  # damaged or of another format: as if it weren't there
        kept = read_calibration(path)
        asked = (digest(recipe.weight_files), how.prompts, how.num_steps, how.margin)
        if asked == (kept.checkpoint_sha256, kept.prompts, kept.num_steps, kept.margin):
            return kept, str(path)
    return calibrate(preset, found, recipe.network, how, report), str(path)
