# SPDX-License-Identifier: Apache-2.0
"""How well the toy's weights do what prompts say that training never showed.

python -m benchmarks.quality.bench_quality --checkpoints FOLDER --samples 200 --output output/quality
"""

import argparse
import base64
import io
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from benchmarks.quality import levels
from benchmarks.results import record
from predict2_export.toy import TRAINED
from predict2_export.toyworld.checkpoint import load_networks
from predict2_export.toyworld.plots import contact_sheet
from predict2_export.toyworld.quality import (
    ATTRIBUTES,
    OF_CLIPS,
    Networks,
    Result,
    judge_text2image,
    judge_text2world,
    judge_vae,
    judge_video2world,
    table,
)
from predict2_export.toyworld.scene import Split, plain_caption

# Prompts whose words were trained with other companions, and looks that training never showed at all.
SPLITS: tuple[Split, ...] = ("held-out", "unseen")
SHOWN = 12  # samples of a task on the page
FRAMES = (0, 3, 6, 9, 12)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=TRAINED)
    parser.add_argument("--samples", type=int, default=200, help="of each task (%(default)s)")
    parser.add_argument("--fp8-samples", type=int, default=100, help="of each task at the level fp8, the first of those (%(default)s); 0 leaves it out")  # fmt: skip
    parser.add_argument("--torch-fp8-samples", type=int, default=50, help="the same of torch's engines (%(default)s)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("output/quality"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    networks = load_networks(args.checkpoints)
    began = time.monotonic()
    values: dict[str, object] = {"samples": args.samples}
    results: list[Result] = []
    for split in SPLITS:
        vae, ratios = judge_vae(networks.vae, args.samples, split=split)
        judged = [vae]
        for judge in (judge_text2image, judge_video2world, judge_text2world):
            judged.append(judge(networks, args.samples, split=split))
            told = (
                f"{time.monotonic() - began:.0f} s: {judged[-1].task} is judged on {split} prompts"
            )
            print(told, flush=True)
        ending = "" if split == "held-out" else f"_{split}"
        found = {**_values(judged), "vae_psnr_db": round(statistics.mean(ratios), 2)}
        values |= {f"{name}{ending}": value for name, value in found.items()}
        results += judged
    print(table(results))
    record("quality.toy", _command(), values)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "index.html").write_text(_page(results, values), encoding="utf-8")
    for result in results:
        if result.split == "held-out":
            _sheet(result).save(args.output / f"{result.task}.png")
    print(f"{args.output / 'index.html'} shows samples")
    return _gate(args, networks, [r for r in results if r.split == "held-out" and r.task != "vae"])


def _gate(args: argparse.Namespace, networks: Networks, exact: Sequence[Result]) -> int:
    """Measure the level fp8 of each kind of engine beside the level exact; 1 if one is worse than its limits."""
    problems: list[str] = []
    for kind, count, make in (
        ("", args.fp8_samples, levels.in_fp8),
        ("-torch", args.torch_fp8_samples, levels.in_torch_fp8),
    ):
        count = min(count, args.samples)
        if not count:
            continue
        for found in levels.drifts(exact, make(networks, args.checkpoints, args.output), count):
            record(f"quality.fp8{kind} {found.exact.task}", _command(), levels.values(found))
            problems += [f"fp8{kind}: {problem}" for problem in found.problems()]
    for problem in problems:
        print(f"the level fp8 is worse than it may be: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _command() -> str:
    return " ".join(["python -m benchmarks.quality.bench_quality", *sys.argv[1:]])


def _values(results: Sequence[Result]) -> dict[str, object]:
    values: dict[str, object] = {}
    for result in results:
        for attribute in ATTRIBUTES:
            if attribute in OF_CLIPS and len(result.clips[0]) == 1:
                continue
            good, count, _, _ = result.rate(attribute)
            values[f"{result.task}_{attribute}"] = round(good / count, 4)
        if result.given_psnr:
            values["given_frame_psnr_db"] = round(statistics.mean(result.given_psnr), 2)
            values["given_frame_ssim"] = round(statistics.mean(result.given_ssim), 4)
    return values


def _page(results: Sequence[Result], values: dict[str, object]) -> str:
    parts = ["<!doctype html><meta charset=utf-8><title>Toy world quality</title>"]
    parts.append("<style>body{font-family:sans-serif;margin:2em}img{image-rendering:pixelated}</style>")  # fmt: skip
    parts.append(f"<h1>Toy world quality</h1><pre>{table(results)}</pre><pre>{values}</pre>")
    for result in results:
        parts.append(f"<h2>{result.task}, {result.split} prompts</h2>")
        step = max(len(result.scenes) // SHOWN, 1)
        for index in range(0, len(result.scenes), step):
            verdict = "agrees" if result.agreements[index].all else "differs"
            parts.append(f"<p>{plain_caption(result.scenes[index])}: {verdict}<br>{_image(result, index)}</p>")  # fmt: skip
    return "\n".join(parts)


def _sheet(result: Result) -> Image.Image:
    """The first samples of one size: pictures side by side, clips one below the other."""
    clips = [clip for clip in result.clips if clip.shape == result.clips[0].shape]
    if len(clips[0]) == 1:
        return contact_sheet([clip[0] for clip in clips[: 2 * SHOWN]], SHOWN // 2, scale=2)
    frames = [clip[i] for clip in clips[: SHOWN - 4] for i in range(0, len(clip), 2)]
    return contact_sheet(frames, 7, scale=2)


def _image(result: Result, index: int) -> str:
    clip = result.clips[index]
    frames = [clip[i] for i in FRAMES if i < len(clip)]
    buffer = io.BytesIO()
    contact_sheet(frames, len(frames), scale=2).save(buffer, "PNG")
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


if __name__ == "__main__":
    sys.exit(main())
