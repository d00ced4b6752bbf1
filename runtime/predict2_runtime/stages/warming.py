# SPDX-License-Identifier: Apache-2.0
"""What a stage evaluates once before its server is ready, so that no request pays for first times."""

from predict2_spec.manifest import Manifest
from predict2_spec.presets import Preset, Task
from predict2_spec.requests import Text2ImageRequest
from predict2_spec.video import PIXEL_MULTIPLE, TEMPORAL_STRIDE, VideoShape

TEXT = "a red ball rolls over a wooden floor"
# The first frame and one chunk that follows it, which is another graph of the VAE.
TWO_CHUNKS = 1 + TEMPORAL_STRIDE


def warming_shapes(
    manifest: Manifest, preset: Preset, task: Task, most_frames: int = 0
) -> tuple[VideoShape, ...]:
    """Shapes to evaluate an installed engine at.

    Most engines take any shape, so the smallest there is will do. A plan takes what it was built for, and a recorded
    engine (`cuda_graphs`) records each shape the first time it sees it: they get the preset's own shapes, as many as
    they keep, beginning with the one that requests have by default.

    Args:
        manifest: the engine's.
        preset: what it serves.
        task: text2image for pictures, else clips.
        most_frames: of a clip, where more would be the same again; 0: all.
    """
    picture = task == "text2image"
    frames = 1 if picture else min(preset.num_frames, most_frames or preset.num_frames)
    planned = any(graph.profile for graph in manifest.graphs.values())
    sizes = preset.image_sizes if picture else preset.video_sizes
    usual = sizes[Text2ImageRequest.aspect_ratio]
    ordered = [usual, *(size for size in sizes.values() if size != usual)]
    own = [VideoShape(frames, height, width) for width, height in ordered]
    if planned or manifest.cuda_graphs:
        return tuple(own[: max(1, manifest.cuda_graphs)])
    if preset.dit(task).neighborhoods:  # made for one grid alone
        return tuple(own[:1])
    return (VideoShape(min(frames, TWO_CHUNKS), PIXEL_MULTIPLE, PIXEL_MULTIPLE),)
