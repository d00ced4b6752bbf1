# SPDX-License-Identifier: Apache-2.0
"""The plain torch DiT in bf16 at the real shapes: the yardstick for every engine. Random weights, batch 1."""

import torch

from benchmarks.report import record, summary
from benchmarks.timing import gpu_seconds
from predict2_export.networks.dit import Dit
from predict2_spec.networks import (
    DIT_2B_TEXT2IMAGE,
    DIT_2B_VIDEO2WORLD,
    DIT_14B_TEXT2IMAGE,
    LATENT_CHANNELS,
    T5_11B,
    DitSpec,
)
from predict2_spec.video import TEXT2IMAGE_SIZES, VIDEO_SIZES, LatentShape, VideoShape

COMMAND = "make gpu"
CASES = (
    ("2B text2image", DIT_2B_TEXT2IMAGE, 1, TEXT2IMAGE_SIZES["16:9"]),
    ("14B text2image", DIT_14B_TEXT2IMAGE, 1, TEXT2IMAGE_SIZES["16:9"]),
    ("2B video2world 480p 16 fps", DIT_2B_VIDEO2WORLD, 93, VIDEO_SIZES["480"]["16:9"]),
    ("2B video2world 720p 16 fps", DIT_2B_VIDEO2WORLD, 93, VIDEO_SIZES["720"]["16:9"]),
)


def floating_operations(spec: DitSpec, tokens: int) -> float:
    """Of one forward pass: linears on every token, self-attention, cross-attention with the text."""
    width = spec.width
    linears = 2 * tokens * width * width * (4 + 2 + 2 * spec.mlp_ratio)
    text = 2 * T5_11B.num_tokens * spec.text_width * width * 2
    attention = 4 * tokens * width * (tokens + T5_11B.num_tokens)
    return float(spec.num_blocks * (linears + text + attention))


def measure(spec: DitSpec, latent: LatentShape) -> list[float]:
    """Seconds of each forward pass."""
    torch.manual_seed(0)
    dit = Dit(spec).to(device="cuda", dtype=torch.bfloat16).eval()
    options = {"device": "cuda", "dtype": torch.bfloat16}
    x = torch.randn(1, LATENT_CHANNELS, latent.frames, latent.height, latent.width, **options)
    time = torch.full((1, latent.frames), 0.5, **options)
    text = torch.randn(1, T5_11B.num_tokens, spec.text_width, **options)
    mask = torch.zeros_like(x[:, :1]) if spec.condition_mask else None
    with torch.inference_mode():
        assert torch.isfinite(dit(x, time, text, mask)).all()
        return gpu_seconds(lambda: dit(x, time, text, mask), runs=10)


def main() -> None:
    """Measure and record."""
    for name, spec, frames, (width, height) in CASES:
        latent = VideoShape(frames, height, width).latent
        result = summary(measure(spec, latent))
        rate = floating_operations(spec, latent.tokens) / result["median_s"] / 1e12
        record(
            f"DiT forward, torch eager bf16, {name}",
            COMMAND,
            {**result, "note": f"{latent.tokens} tokens, {rate:.0f} TFLOP/s"},
        )


if __name__ == "__main__":
    main()
