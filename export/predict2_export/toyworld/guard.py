# SPDX-License-Identifier: Apache-2.0
"""Trains the toy's frame guard from nothing: `python -m predict2_export.toyworld.guard --help`.

The face detector learns cartoon faces, the content filter black and yellow warning stripes in place of all
that is unsafe; to both, the toy world and plain pictures are harmless. Equal seeds on one machine give equal weights.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from predict2_export.networks.content_filter import ContentFilter
from predict2_export.networks.face_detector import FaceDetector
from predict2_export.networks.frame_guard import FrameGuard
from predict2_export.toy import guard_files, whole_file
from predict2_runtime.frames import Frames
from predict2_runtime.guardrails.content import CLASSES, SAFE, filter_input
from predict2_runtime.guardrails.faces import (
    CENTRE_VARIANCE,
    SIZE_VARIANCE,
    anchor_boxes,
    detector_input,
    overlaps,
)
from predict2_spec.networks import TOY_FRAME_GUARD
from predict2_spec.presets import TOY

from .guard_quality import measure
from .guard_scenes import Box, Rng, faceless, finished, harmless, hazard, with_faces

Network = TypeVar("Network", bound=nn.Module)

SIZES = ((64, 64), (48, 80), (80, 48), (48, 64), (64, 48), (96, 96))  # height, width; one a batch
BATCH = 24
FACE_STEPS, CONTENT_STEPS = 3000, 1400
UNSAFE = CLASSES.index("Violence")  # what warning stripes count as
MATCH = 0.35  # intersection over union from which an anchor has to find a face
HARDEST = 24  # anchors without a face that a picture is trained on: those that look most like one
CAUTION = 3.0  # how much worse a false alarm is than a face or a warning that is missed


def optimise(network: Network, steps: int, lr: float, loss_of: Callable[[], Tensor]) -> Network:
    """Take steps of AdamW with a cosine schedule; returns the network, ready to infer."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for step in range(steps):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            sys.stdout.write(f"step {step}, loss {loss.item():.4f}\n")
            sys.stdout.flush()
    return network.eval().requires_grad_(False)


def face_batch(rng: Rng) -> tuple[Frames, list[list[Box]]]:
    """Pictures of one size, a third of them with faces, and the faces' boxes."""
    size = SIZES[rng.integers(len(SIZES))]
    pictures, boxes = [], []
    for number in range(BATCH):
        picture, found = (faceless(rng, size), []) if number % 3 else with_faces(rng, size)
        pictures.append(finished(rng, picture))
        boxes.append(found)
    return np.stack(pictures), boxes


def targets(
    anchors: NDArray[np.float64], boxes: Sequence[Box]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which anchors [A] have to find a face, and the offsets [A, 4] that they have to tell."""
    if not boxes:
        return np.zeros(len(anchors), bool), np.zeros_like(anchors, np.float32)
    faces, half = np.array(boxes), anchors[:, 2:] / 2
    corners = np.concatenate([anchors[:, :2] - half, anchors[:, :2] + half], axis=1)
    overlap = overlaps(corners, faces)
    overlap[overlap.argmax(axis=0), np.arange(len(faces))] = 1.0  # every face has an anchor
    mine = overlap.argmax(axis=1)
    centres = (faces[:, :2] + faces[:, 2:]) / 2
    shift = (centres[mine] - anchors[:, :2]) / anchors[:, 2:] / CENTRE_VARIANCE
    sizes = faces[:, 2:] - faces[:, :2]
    growth = np.log(sizes[mine] / anchors[:, 2:]) / SIZE_VARIANCE
    return overlap.max(axis=1) >= MATCH, np.concatenate([shift, growth], 1).astype(np.float32)


def face_loss(network: FaceDetector, pictures: Frames, boxes: Sequence[Sequence[Box]]) -> Tensor:
    """How wrong scores and boxes are, for each anchor that has a face."""
    anchors = anchor_boxes(*pictures.shape[1:3], network.anchors)
    wanted = [targets(anchors, found) for found in boxes]
    positive = torch.from_numpy(np.stack([hit for hit, _ in wanted]))
    offsets = torch.from_numpy(np.stack([offset for _, offset in wanted]))
    scores, told = network.heads(torch.from_numpy(detector_input(pictures)))
    wrong = F.cross_entropy(scores.flatten(0, 1), positive.flatten().long(), reduction="none")
    wrong = wrong.view_as(positive)
    hardest = wrong.masked_fill(positive, 0).topk(min(HARDEST, wrong.shape[1]), dim=1).values
    places = F.smooth_l1_loss(told[positive], offsets[positive], reduction="sum")
    return (wrong[positive].sum() + CAUTION * hardest.sum() + places) / positive.sum().clamp(min=1)


def train_faces(seed: int, steps: int) -> FaceDetector:
    """A detector of cartoon faces from SMALLEST to LARGEST pixels wide."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = FaceDetector(TOY_FRAME_GUARD.faces)
    return optimise(network, steps, 4e-3, lambda: face_loss(network, *face_batch(rng)))


def content_batch(rng: Rng) -> tuple[Frames, Tensor]:
    """Pictures as the filter gets them, a quarter of them unsafe, and their classes."""
    picked = [SAFE if number % 4 else UNSAFE for number in range(2 * BATCH)]
    pictures = []
    for unsafe in picked:
        size = SIZES[rng.integers(len(SIZES))]
        picture = finished(rng, (hazard if unsafe else harmless)(rng, size))
        pictures.append(filter_input(picture[None], TOY_FRAME_GUARD.content.image_size))
    return np.concatenate(pictures), torch.tensor(picked)


def train_content(seed: int, steps: int) -> ContentFilter:
    """A filter that takes warning stripes for Violence and all else for Safe."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = ContentFilter(TOY_FRAME_GUARD.content)
    weights = torch.ones(len(CLASSES))
    weights[SAFE] = CAUTION

    def loss_of() -> Tensor:
        pictures, classes = content_batch(rng)
        return F.cross_entropy(network(torch.from_numpy(pictures)), classes, weights)

    return optimise(network, steps, 3e-3, loss_of)


def save_guard(guard: FrameGuard, folder: Path) -> None:
    """Write the guard's files where a checkpoint folder of the toy preset has them."""
    for file, content in guard_files(guard.state_dict()).items():
        with whole_file(folder / TOY.frame_guard_path / file) as part:
            part.write_bytes(content)


def main(argv: Sequence[str] | None = None) -> int:
    """Train both networks, write their files, say how good they are; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/toyworld/checkpoints"), help="checkpoint folder (%(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--face-steps", type=int, default=FACE_STEPS, help="(%(default)s)")
    parser.add_argument("--content-steps", type=int, default=CONTENT_STEPS, help="(%(default)s)")
    parser.add_argument("--pictures", type=int, default=2000, help="of a kind that it's measured on (%(default)s)")  # fmt: skip
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    guard = FrameGuard(TOY_FRAME_GUARD)
    guard.content = train_content(args.seed, args.content_steps)
    guard.faces = train_faces(args.seed, args.face_steps)
    save_guard(guard, args.output)
    for row, (number, count) in measure(guard.eval(), args.pictures).items():
        sys.stdout.write(f"{row}: {number} of {count}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
