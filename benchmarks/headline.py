# SPDX-License-Identifier: Apache-2.0
"""The generations people ask for first: what each is, what the original takes, the least it can take, and our goals."""

from dataclasses import dataclass

from predict2_export.costs import dit_flops
from predict2_runtime.schedule import solver_steps
from predict2_spec.presets import Preset, Task, find_preset
from predict2_spec.video import LatentShape, VideoShape

NUM_STEPS = 35  # the original's default
# With the prompt and without, and a clean step at the end: 72
EVALUATIONS = 2 * len(solver_steps(NUM_STEPS))
# What large products have been reported to reach on GPUs like the H200. Its datasheet says 989 and 1979, at clocks that
# none of them holds; attention reaches neither.
BF16_RATE = 790e12  # FLOP a second, of large products
FP8_RATE = 1400e12
# documentations/performance.md of nvidia-cosmos/cosmos-predict2 at 661da47; prompt refiner and guardrails included.
PUBLISHED = "the original's performance page, one H200 SXM"


@dataclass(frozen=True)
class Workload:
    """One generation, by default sizes and steps."""

    preset_name: str
    task: Task
    published_s: float
    # Ours on one H200, by level, without prompt refiner and guardrails
    target_exact_s: float | None = None
    target_fp8_s: float | None = None

    @property
    def name(self) -> str:
        return f"{self.preset_name}-{self.task}"

    @property
    def preset(self) -> Preset:
        return find_preset(self.preset_name)

    @property
    def latent(self) -> LatentShape:
        width, height = self.preset.size(self.task, "16:9")
        return VideoShape(self.preset.max_frames(self.task), height, width).latent


WORKLOADS = (
    Workload("2b-480p-16fps", "text2image", 9.02, 2.3, 1.6),
    Workload("2b-480p-16fps", "video2world", 50.2, 37.0),
    Workload("2b-720p-16fps", "video2world", 221.7, 203.0),
    Workload("14b-480p-16fps", "text2image", 15.96, 12.7, 8.0),
    Workload("14b-480p-16fps", "video2world", 176.19),
    Workload("14b-720p-16fps", "video2world", 836.9),
)
DECODE_TARGET_S = 1.8  # 93 frames at 720p


def evaluation_flops(of: Workload) -> int:
    """Of one evaluation of the denoiser for one sample, all of it computed as the original does."""
    spec = of.preset.dit(of.task)
    return dit_flops(spec, of.latent.grid, of.preset.text_encoder.num_tokens).total


def floor_s(of: Workload, rate: float = BF16_RATE) -> float:
    """Seconds of the denoiser's evaluations alone, every FLOP at `rate` a second.

    No floor for what leaves FLOPs out, as our engines do with what both rows of guidance share.
    """
    return EVALUATIONS * evaluation_flops(of) / rate
