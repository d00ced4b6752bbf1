# SPDX-License-Identifier: Apache-2.0
"""The frame guard: nothing unsafe leaves it, and faces leave it unrecognisable. What it can't decide it refuses."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predict2_runtime.engines import Engine, open_engine
from predict2_runtime.frames import Frames
from predict2_runtime.guardrails.content import Finding, filter_input, judge
from predict2_runtime.guardrails.faces import anchor_boxes, detector_input, find_faces, pixelate
from predict2_spec.errors import InvalidRequestError
from predict2_spec.guardrails import SUBJECTS, UNDECIDED, Subject, Verdict
from predict2_spec.networks import FrameGuardSpec
from predict2_spec.presets import Preset
from predict2_spec.tensors import GUARDRAIL_VIDEO
from predict2_spec.video import VideoShape

from . import Arrays
from .warming import warming_shapes

log = logging.getLogger(__name__)

CONTENT, FACES = "content", "faces"  # the checks, and the engine's graphs, in the order they run in
# Frames that an engine is shown at once. Four of 1280 x 704 take the released face detector 1.1 GB of working memory.
BATCH = 4


@dataclass(frozen=True)
class GuardrailVideo:
    """Refuses a clip for a single unsafe frame; of a safe one it pixelates faces."""

    spec: FrameGuardSpec
    content: Engine  # on numpy arrays, as the next
    faces: Engine
    shapes: tuple[tuple[int, int], ...]  # as largest_shapes gives them
    warming: tuple[VideoShape, ...] = ()

    @classmethod
    def open(cls, folder: Path, preset: Preset) -> "GuardrailVideo":
        """The stage whose engine is installed in `folder`."""
        opened = open_engine(folder, GUARDRAIL_VIDEO.name)
        content, faces = map(opened.on_numpy, (CONTENT, FACES))
        warming = warming_shapes(opened.manifest, preset, preset.tasks[-1])
        return cls(preset.frame_guard, content, faces, largest_shapes(preset), warming)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`frames` UINT8 [F, H, W, 3] -> `frames` to show, and a `verdict` as JSON.

        The frames of what isn't safe come back black.

        Raises:
            InvalidRequestError: there are no frames, or more than the preset makes, or `subject` is none of SUBJECTS.
        """
        frames: Frames = inputs["frames"]
        if not frames.size:
            raise InvalidRequestError(f"frames {frames.shape} hold no pixels; send one at least")
        self._check_size(frames)
        shown, verdict = self._look(frames, _subject(inputs, len(frames)))
        return {"frames": shown, "verdict": verdict.to_json()}

    def warm_up(self) -> None:
        """Look at black frames, whatever is found in them; unlike a request's, an engine's failure comes out."""
        for shape in self.warming:
            count = min(BATCH, shape.frames)
            frames = np.zeros((count, shape.height, shape.width, 3), np.uint8)
            self._find_unsafe(frames)
            self._without_faces(frames)

    def _check_size(self, frames: Frames) -> None:
        count, height, width = frames.shape[:3]
        if not any(count <= most and height * width <= pixels for most, pixels in self.shapes):
            most_of_all = " or ".join(
                f"{most} frame{'s' if most > 1 else ''} of {pixels} pixels"
                for most, pixels in self.shapes
            )
            raise InvalidRequestError(
                f"{count} frames of {width} x {height} pixels are more than this server makes: {most_of_all} at most. "
                "Send fewer, or shrink them"
            )

    def _look(self, frames: Frames, subject: Subject) -> tuple[Frames, Verdict]:
        check = CONTENT
        try:
            if finding := self._find_unsafe(frames):
                category, where = finding.category, finding.frames
                log.critical("GUARDRAIL BLOCKED a %s: %s in frames %s", subject, category, where)
                return np.zeros_like(frames), Verdict(False, subject, check, category, where)
            check = FACES
            shown, count = self._without_faces(frames)
        except Exception:  # whatever it is, frames that nobody looked at must not leave
            log.exception("guardrail %s failed on a %s of shape %s", check, subject, frames.shape)
            return np.zeros_like(frames), Verdict(False, subject, check, UNDECIDED)
        return shown, Verdict(True, subject, check, faces=count)

    def _find_unsafe(self, frames: Frames) -> Finding | None:
        size = self.spec.content.image_size
        answers = [
            _run(self.content, filter_input(batch, size))["logits"] for batch in _batches(frames)
        ]
        return judge(np.concatenate(answers))

    def _without_faces(self, frames: Frames) -> tuple[Frames, int]:
        anchors = anchor_boxes(*frames.shape[1:3], self.spec.faces.anchors)
        shown, count = frames.copy(), 0
        for batch in _batches(shown):
            found = _run(self.faces, detector_input(batch))
            for frame, offsets, probability in zip(
                batch, found["boxes"], found["probability"], strict=True
            ):
                count += pixelate(frame, find_faces(offsets, probability, anchors))
        return shown, count


def largest_shapes(preset: Preset) -> tuple[tuple[int, int], ...]:
    """What each kind of the preset's outputs has at most: frames, and pixels of one."""
    shapes = ((preset.max_frames(task), preset.max_pixels(task)) for task in preset.tasks)
    return tuple(dict.fromkeys(shapes))


def _subject(inputs: Arrays, num_frames: int) -> Subject:
    if "subject" not in inputs:
        return "clip" if num_frames > 1 else "picture"
    for subject in SUBJECTS:
        if inputs["subject"] == [subject]:
            return subject
    raise InvalidRequestError(
        f"subject {inputs['subject']!r:.60} is none of {', '.join(SUBJECTS)}; give one, or leave it out"
    )


def _batches(frames: Frames) -> Iterator[Frames]:
    """Views of a few frames in a row."""
    for start in range(0, len(frames), BATCH):
        yield frames[start : start + BATCH]


def _run(engine: Engine, picture: NDArray[np.float32]) -> dict[str, Any]:
    """The engine's answer to a batch of pictures.

    Raises:
        ValueError: it isn't one for each picture, or no answer at all: comparisons with NaN are false, so a face
            would go unseen.
    """
    answer = engine({"picture": picture})
    for name, values in answer.items():
        if len(values) != len(picture) or not np.isfinite(values).all():
            raise ValueError(f"{name} {values.shape} of {len(picture)} frames holds no answer")
    return answer
