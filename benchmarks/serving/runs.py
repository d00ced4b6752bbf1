# SPDX-License-Identifier: Apache-2.0
"""Which runs of perf_analyzer there are, and the command line of each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from predict2_spec import tensors
from predict2_spec.presets import Preset

from .inputs import model_of

_MOST_OUTPUT_BYTES = 256 * 2**20  # of shared memory for each output


@dataclass(frozen=True)
class Run:
    """One call of perf_analyzer: so many requests, so many of them at once, and no time limit."""

    inputs: str  # name of the input file
    concurrency: int
    count: int  # requests, a multiple of `concurrency`
    protocol: Literal["grpc", "http"] = "grpc"
    shared_memory: bool = False  # tensors go through regions that both sides map

    @property
    def model(self) -> tensors.Model:
        return model_of(self.inputs)

    @property
    def task(self) -> str:
        """What a model that takes any task is asked for."""
        return self.inputs.partition("-")[2]

    @property
    def way(self) -> str:
        """How requests and answers travel."""
        if self.shared_memory:
            return "shared memory"
        call = "gRPC" if self.protocol == "grpc" else "HTTP"
        return f"{call} stream" if self.model.decoupled else call

    @property
    def name(self) -> str:
        return f"serving {self.inputs}, {self.way}, {self.concurrency} at once"


def _sweep(inputs: str, count: int, *concurrencies: int) -> tuple[Run, ...]:
    return tuple(Run(inputs, at_once, count) for at_once in concurrencies)


_PUBLIC = (
    *_sweep("text2image", 24, 1, 2, 4),
    Run("text2image", 1, 24, protocol="http"),
    *_sweep("video2world", 20, 1, 2, 4),
    *_sweep("text2world", 20, 1, 2),
    *_sweep("generate-text2image", 24, 1, 4),
    *_sweep("generate-video2world", 20, 1, 4),
    *_sweep("generate-text2world", 20, 1),
    *_sweep("best_of_n", 20, 1),
)
_STAGES = (
    *_sweep("tracking", 100, 1, 4),
    *_sweep("text_encoder", 100, 1, 4),
    *_sweep("vae_encoder", 100, 1, 4),
    *_sweep("vae_decoder", 40, 1, 4),
    *_sweep("text2image_denoiser", 100, 1, 4),
    *_sweep("video2world_denoiser", 100, 1, 4),
    *_sweep("guardrail_text", 100, 1, 4),
    *_sweep("guardrail_video", 20, 1, 4),
    *_sweep("reasoner", 100, 1, 4),
    *_sweep("prompt_refiner", 100, 1, 4),
    *_sweep("critic", 40, 1, 4),
)
# For these perf_analyzer wants models without optional inputs: see repositories.stages_only.
_SHARED = tuple(
    Run(stage.name, 1, 20 if stage in (tensors.VAE_DECODER, tensors.GUARDRAIL_VIDEO) else 100, shared_memory=True)
    for stage in tensors.STAGES
)  # fmt: skip


def plan(preset: Preset, served: Collection[str], requests: int | None = None) -> tuple[Run, ...]:
    """All runs that a server can take.

    Args:
        preset: what is served.
        served: the models that are.
        requests: of each run, made a multiple of its concurrency; None: as many as suit the toy.
    """
    runs = [
        run
        for run in (*_PUBLIC, *_STAGES, *_SHARED)
        if run.model.name in served and (not run.task or run.task in preset.tasks)
    ]
    if requests is None:
        return tuple(runs)
    return tuple(
        replace(run, count=-(-requests // run.concurrency) * run.concurrency) for run in runs
    )


_FOR_PICTURES = (
    tensors.GUARDRAIL_TEXT,
    tensors.TEXT_ENCODER,
    tensors.TEXT2IMAGE_DENOISER,
    tensors.VAE_DECODER,
)
_FOR_CLIPS = (
    tensors.GUARDRAIL_TEXT,
    tensors.TEXT_ENCODER,
    tensors.VAE_ENCODER,
    tensors.VIDEO2WORLD_DENOISER,
    tensors.VAE_DECODER,
    tensors.GUARDRAIL_VIDEO,
)
# What a request calls in the end, by what it asks for. perf_analyzer fails on a stage that isn't called.
_CALLED: Mapping[str, tuple[tensors.Model, ...]] = {
    "text2image": _FOR_PICTURES,
    "video2world": _FOR_CLIPS,
    "text2world": (*_FOR_CLIPS, tensors.TEXT2IMAGE_DENOISER),
    "best_of_n": (*_FOR_CLIPS, tensors.REASONER),
    "prompt_refiner": (tensors.REASONER,),
    "critic": (tensors.REASONER,),
}


def stages_of(run: Run, served: Collection[str]) -> tuple[str, ...]:
    """The stages that a run's model calls and that call nothing themselves."""
    called = _CALLED.get(run.task or run.model.name, ())
    return tuple(stage.name for stage in called if stage.name in served)


@dataclass(frozen=True)
class Files:
    """What a run reads and writes."""

    inputs: Path
    csv: Path
    export: Path

    @classmethod
    def of(cls, run: Run, inputs: Path, folder: Path) -> "Files":
        stem = f"{run.inputs}-{run.way.replace(' ', '-').lower()}-{run.concurrency}"
        return cls(inputs / f"{run.inputs}.json", folder / f"{stem}.csv", folder / f"{stem}.json")


def arguments(run: Run, url: str, files: Files, stages: tuple[str, ...]) -> list[str]:
    """perf_analyzer's arguments; `stages` are those that a public model calls."""
    result = [
        "-m", run.model.name, "-i", run.protocol, "-u", url, "--input-data", str(files.inputs),
        "--concurrency-range", str(run.concurrency), "--request-count", str(run.count),
        "--warmup-request-count", str(run.concurrency), "--percentile", "95",
        "--verbose-csv", "-f", str(files.csv), "--profile-export-file", str(files.export),
    ]  # fmt: skip
    if run.model.decoupled:
        result.append("--streaming")
    if run.shared_memory:
        result += ["--shared-memory", "system"]
        result += ["--output-shared-memory-size", str(_MOST_OUTPUT_BYTES)]
    if stages:
        result += ["--bls-composing-models", ",".join(stages)]
    return result
