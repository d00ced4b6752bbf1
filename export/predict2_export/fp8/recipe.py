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
from predict2_export.installation import (
    Report,
    Stamps,
    check_files,
    check_output,
    check_unchanged,
    digest,
    stamps,
)
from predict2_export.networks.fp8 import quantize_linears
from predict2_export.recipes import Recipe
from predict2_export.toy import whole_file
from predict2_export.verify import Limits
from predict2_runtime.repository import VERSION_FOLDER
from predict2_spec.errors import CheckpointError, InvalidRequestError
from predict2_spec.networks import DitSpec
from predict2_spec.presets import Preset

from .calibrate import DENOISERS, Measurement, calibrate
from .calibration import Calibration, read_calibration
from .layers import DEFAULT_LAYERS, Fp8Layers, candidates

_FILE = "calibration.json"  # in an engine's folder

# Engine and module differ as float32 does, by some 1e-6. Where that carries a number over the middle between two e4m3
# codes it moves by up to an eighth, and so do others after it. Of the toy's answers to 48 random inputs the furthest
# had a cosine of 0.9994 and an error of 0.05; a wrong scale is ten times as far.
FP8 = Limits(min_cosine=0.998, max_error=0.1)


@dataclass(frozen=True)
class Fp8Recipe(Recipe):
    """One denoiser to build in FP8."""

    exact: Recipe = field(kw_only=True)
    input_scales: Mapping[str, float] = field(kw_only=True)  # of every layer in FP8
    calibration: Calibration = field(kw_only=True)  # that these are of; it names the layers too
    measured: Stamps = field(kw_only=True)  # of the files whose digest the calibration has

    @property
    def choices(self) -> str:
        """Also the scales, and by their names the layers."""
        return f"{super().choices} {dict(self.input_scales)}"

    def weights(self) -> dict[str, StoredTensor]:
        """The values of the module's parameters, rounded to FP8 when they are read.

        Raises:
            CheckpointError: a file is damaged, holds other weights, or isn't any more what was measured.
        """
        check_unchanged(self.measured)
        return quantized(self.exact.weights(), self.input_scales)

    def write_beside(self, engine: Path) -> None:
        """Also the calibration, from which `installed_recipe` makes the same again."""
        super().write_beside(engine)
        (engine / _FILE).write_text(self.calibration.to_json(), encoding="utf-8")


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
    return _fp8_recipe(exact, calibration, layers.names(_spec(exact)), source)


def installed_recipe(exact: Recipe, repository: Path) -> Fp8Recipe:
    """What the FP8 engine in a repository was made from.

    Args:
        exact: the denoiser's recipe.
        repository: what `build` or `engine` made.

    Raises:
        CheckpointError: its calibration is missing or damaged, or the denoiser has other weights now.
    """
    path = repository / exact.network / VERSION_FOLDER / _FILE
    calibration = read_calibration(path)
    unknown = set(calibration.layers) - set(candidates(_spec(exact)))
    if unknown or not calibration.layers:
        raise CheckpointError(
            f"{path} names {min(unknown, default='no layer')!r:.80} as in FP8, which {exact.network} hasn't; build it again"
        )
    return _fp8_recipe(exact, calibration, calibration.layers, str(path))


def _kept(repository: Path, recipe: Recipe) -> Path:
    return repository / f"{recipe.network}.calibration.json"


def _fp8_recipe(
    exact: Recipe, calibration: Calibration, names: Sequence[str], source: str
) -> Fp8Recipe:
    measured = stamps(exact.weight_files)
    calibration.check(exact.network, digest(exact.weight_files), source)
    same = {f.name: getattr(exact, f.name) for f in fields(exact)}
    own = {
        "make": partial(_quantized_network, exact, names),
        "limits": FP8,
        "precision": "fp8",
        "exact": exact,
        "input_scales": calibration.input_scales(names),
        "calibration": replace(calibration, layers=tuple(names)),
        "measured": measured,
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
    as_asked: bool = False  # `how` is the owner's wish: what was measured otherwise won't do


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
        InvalidRequestError: a calibration is of no denoiser that is built, or the folder is another preset's.
        Predict2Error: there is something to measure and the quantizer isn't installed.
    """
    wanted = [r for r in found if r.network in DENOISERS and only in ("", r.network)]
    for recipe in wanted:
        recipe.check_lowerable()
    check_files(preset, wanted)
    check_output(folder, preset)
    given = _given(choice.calibrations, [recipe.network for recipe in wanted])
    if choice.as_asked and wanted and given.keys() == {recipe.network for recipe in wanted}:
        raise InvalidRequestError(
            "--calibration-prompts and --calibration-margin say how to measure, and every denoiser that is built has a "
            "--calibration; drop one or the other"
        )
    made: dict[str, Recipe] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for recipe in wanted:
        calibration, source = given.get(recipe.network) or _own(
            preset, found, recipe, choice, folder, report
        )
        fp8 = fp8_recipe(recipe, calibration, choice.layers, source)
        with whole_file(_kept(folder, recipe)) as part:  # for the next build
            part.write_text(replace(calibration, layers=()).to_json(), encoding="utf-8")
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
    choice: Fp8Choice,
    folder: Path,
    report: Report,
) -> tuple[Calibration, str]:
    """A calibration made here before, or made now."""
    path = _kept(folder, recipe)
    with suppress(CheckpointError):  # damaged, or of other weights: as if it weren't there
        kept = read_calibration(path)
        kept.check(recipe.network, digest(recipe.weight_files), str(path))
        kept.input_scales(choice.layers.names(_spec(recipe)))
        how = choice.how
        asked = (how.prompts, how.num_steps, how.margin)
        if not choice.as_asked or asked == (kept.prompts, kept.num_steps, kept.margin):
            return kept, str(path)
    return calibrate(preset, found, recipe.network, choice.how, report), str(path)


def _spec(recipe: Recipe) -> DitSpec:
    assert isinstance(recipe.spec, DitSpec)
    return recipe.spec
