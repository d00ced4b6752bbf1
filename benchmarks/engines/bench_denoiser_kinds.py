# SPDX-License-Identifier: Apache-2.0
"""One guided step of the toy's denoisers on the CPU: ONNX Runtime's engine and torch's, by turns in one process.

make bench builds build/served/toy; the engines of torch are built beside it.

python -m benchmarks.engines.bench_denoiser_kinds ONNXRUNTIME_REPOSITORY TORCH_REPOSITORY
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import record, summary
from predict2_runtime.engines import read_manifest
from predict2_runtime.repository import VERSION_FOLDER
from predict2_runtime.stages.denoiser import Denoiser
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.presets import TOY, Task
from predict2_spec.video import VideoShape

COMMAND = "python -m benchmarks.engines.bench_denoiser_kinds"
TASKS: tuple[Task, ...] = ("text2image", "video2world")
RUNS, WARM = 60, 5


def step_inputs(task: Task) -> dict[str, Any]:
    """Of a step as the default sizes have it; the picture without a negative prompt, the clip without guidance's half."""
    width, height = TOY.size(task, "16:9")
    shape = VideoShape(TOY.max_frames(task), height, width).latent
    rng = np.random.RandomState(0)

    def normal(*dims: int) -> np.ndarray:
        return rng.standard_normal(dims).astype(np.float32)

    latents = (LATENT_CHANNELS, shape.frames, shape.height, shape.width)
    embeds = (TOY.text_encoder.num_tokens, TOY.text_encoder.width)
    inputs = {
        "latents": normal(*latents),
        "previous_x0": normal(*latents),
        "step": np.array([7]),
        "num_steps": np.array([35]),
        "guidance": np.array([4.0]),
        "prompt_embeds": normal(*embeds),
    }
    if task == "text2image":
        return {**inputs, "negative_prompt_embeds": np.zeros(embeds, np.float32)}
    return {**inputs, "condition_latents": normal(LATENT_CHANNELS, 1, *latents[2:])}


def seconds_of(stage: Denoiser, inputs: dict[str, Any]) -> float:
    """Of one step."""
    began = time.perf_counter()
    stage(inputs)
    return time.perf_counter() - began


def main() -> None:
    """Measure both kinds and record them."""
    for task in TASKS:
        folders = [Path(name) / f"{task}_denoiser" / VERSION_FOLDER for name in sys.argv[1:]]
        stages = {read_manifest(f).kind: Denoiser.open(f, TOY, task) for f in folders}
        inputs = step_inputs(task)
        seconds: dict[str, list[float]] = {kind: [] for kind in stages}
        for run in range(WARM + RUNS):  # by turns, so that what else the machine does hits both
            for kind, stage in stages.items():
                took = seconds_of(stage, inputs)
                if run >= WARM:
                    seconds[kind].append(took)
        shape = "x".join(map(str, inputs["latents"].shape))
        for kind, taken in seconds.items():
            record(
                f"one step, toy {task}, {kind}",
                COMMAND,
                {**summary(taken), "note": f"latents {shape}"},
            )


if __name__ == "__main__":
    main()
