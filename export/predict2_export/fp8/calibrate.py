# SPDX-License-Identifier: Apache-2.0
"""Measure a denoiser: load it, run whole generations of many prompts, keep the largest inputs of its layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from predict2_export.checkpoint.fit import load_strict
from predict2_export.installation import Report, check_files, digest
from predict2_export.recipes import Recipe
from predict2_runtime.text import open_tokenizer, tokenize
from predict2_spec import tensors
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import DitSpec
from predict2_spec.presets import Preset
from predict2_spec.requests import DEFAULT_NEGATIVE_PROMPT, check_text

from .calibration import MARGIN, Calibration, check_margin
from .layers import candidates
from .observe import input_amax, quantizer_version
from .trajectories import (
    Texts,
    clip_generations,
    denoise,
    picture_generations,
    run_clips,
    run_pictures,
)

_PROMPTS = Path(__file__).parent / "prompts"
_IMAGE, _VIDEO = tensors.TEXT2IMAGE_DENOISER.name, tensors.VIDEO2WORLD_DENOISER.name
DENOISERS = (_IMAGE, _VIDEO)
_WIDE = 512  # channels
_MOST_PROMPTS = 1024  # of which each takes a whole generation or more


@dataclass(frozen=True)
class Measurement:
    """How a denoiser is measured."""

    prompts: tuple[str, ...]
    device: str = "cpu"  # on a GPU the networks are in bfloat16
    num_steps: int = 35  # as requests have by default; a distilled network makes its own
    margin: float = MARGIN

    def __post_init__(self) -> None:
        check_margin(self.margin)


def read_prompts(preset: Preset, path: Path | None = None) -> tuple[str, ...]:
    """Prompts to measure with: a file's lines, or those that ship for the preset.

    Raises:
        InvalidRequestError: the file is no text, or has no prompts, too many, or one that no encoder should see.
        OSError: it can't be read.
    """
    own = _PROMPTS / f"{preset.name}.txt"
    path = path or (own if own.is_file() else _PROMPTS / "default.txt")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"{path} isn't text in UTF-8 ({error.reason} at byte {error.start}); write a prompt a line"
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not 0 < len(prompts) <= _MOST_PROMPTS:
        raise InvalidRequestError(
            f"{path} has {len(prompts) or 'no'} prompts; write 1 to {_MOST_PROMPTS}, one a line"
        )
    for prompt in prompts:
        check_text("prompt", prompt)
    return prompts


def calibrate(
    preset: Preset, found: Sequence[Recipe], network: str, how: Measurement, report: Report
) -> Calibration:
    """Measure one denoiser in torch.

    Args:
        preset: whose sizes are run.
        found: recipes of the preset; those of the text encoder and of text2image are used beside the network's own.
        network: the stage, text2image_denoiser or video2world_denoiser.
        how: prompts, device and margin.
        report: is told how far it is.

    Raises:
        CheckpointError: a file is missing, damaged, or holds other weights.
        InvalidRequestError: there is no such device.
        Predict2Error: the quantizer isn't installed.
    """
    if how.device == "cuda" and not torch.cuda.is_available():
        raise InvalidRequestError(
            "torch finds no GPU here to measure on; drop --device cuda, or measure where one is with predict2-export "
            "calibrate and give the file with --calibration"
        )
    modelopt = quantizer_version()  # before minutes of work
    by_name = {recipe.network: recipe for recipe in found}
    recipe, spec = by_name[network], by_name[network].spec
    assert isinstance(spec, DitSpec)
    recipe.check_lowerable()
    check_files(preset, [by_name[n] for n in {tensors.TEXT_ENCODER.name, _IMAGE, network}])
    sha256 = digest(recipe.weight_files)
    with torch.no_grad(), _threads_for(spec):
        texts = _embedded(by_name[tensors.TEXT_ENCODER.name], how, report)
        run = _generations(preset, by_name[_IMAGE], network, texts, how, report)
        report(f"measuring {network} on {len(how.prompts)} prompts")
        amax = input_amax(_loaded(recipe, how.device), candidates(spec), run)
    return Calibration(
        preset=preset.name,
        network=network,
        checkpoint_sha256=sha256,
        prompts=how.prompts,
        num_steps=how.num_steps,
        margin=how.margin,
        modelopt=modelopt,
        amax=amax,
    )


@contextmanager
def _threads_for(spec: DitSpec) -> Iterator[None]:
    """One thread for tiny layers: they gain nothing from more, and lose much where the machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if spec.width < _WIDE else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generations(
    preset: Preset, image: Recipe, network: str, texts: Texts, how: Measurement, report: Report
) -> Callable[[nn.Module], None]:
    """What to run the measured network through."""
    done = _counter(len(how.prompts), report)
    if network == _IMAGE:
        pictures = list(picture_generations(preset, texts, how.num_steps))
        return partial(run_pictures, pictures, done=done)
    report("making the pictures that clips begin with")
    painter = _loaded(image, how.device)
    clips = [
        (clip, denoise(painter, picture))
        for picture, clip in clip_generations(preset, texts, how.num_steps)
    ]
    return partial(run_clips, clips, done=done)


def _embedded(recipe: Recipe, how: Measurement, report: Report) -> Texts:
    report(f"encoding {len(how.prompts)} prompts")
    assert recipe.tokenizer
    encoder = _loaded(recipe, how.device)
    tokenizer = open_tokenizer(recipe.tokenizer, recipe.spec)  # type: ignore[arg-type]
    embeds = []
    for prompt in (
        *how.prompts,
        DEFAULT_NEGATIVE_PROMPT,
    ):  # one by one: T5-11B has little room beside it
        ids, mask = (
            torch.from_numpy(array).to(how.device) for array in tokenize(tokenizer, [prompt])
        )
        embeds.append(encoder(ids, mask)[0])
    return Texts(embeds[:-1], embeds[-1])


def _loaded(recipe: Recipe, device: str) -> nn.Module:
    with torch.device("meta"):
        module = recipe.make().to(torch.float32 if device == "cpu" else torch.bfloat16)
    load_strict(module, recipe.weights(), str(recipe.checkpoint))
    return module.eval().requires_grad_(False).to(device)


def _counter(count: int, report: Report) -> Callable[[], None]:
    number = 0

    def done() -> None:
        nonlocal number
        number += 1
        report(f"{number} of {count} prompts measured")

    return done
