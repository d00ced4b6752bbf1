# SPDX-License-Identifier: Apache-2.0
"""What shapes a plan of TensorRT takes and is tuned for: from a preset's sizes, by the names of a graph's free dims."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import onnx

from predict2_runtime.stages.guardrail_video import BATCH, FACES
from predict2_spec import tensors
from predict2_spec.errors import EngineBuildError
from predict2_spec.limits import MAX_PROMPTS
from predict2_spec.manifest import Range
from predict2_spec.presets import Preset, Task
from predict2_spec.requests import GenerationRequest
from predict2_spec.video import PATCH, PIXEL_MULTIPLE, latent_frames

# Of pictures: all that the preset accepts, or no side shorter or longer than those of its size table.
Extent = Literal["any", "table"]
EXTENTS: tuple[Extent, ...] = get_args(Extent)

Bounds = tuple[int, int, int]  # the least, the one to tune for, the most
Free = dict[str, Bounds]  # by the name of a free dim
Dims = Mapping[str, Sequence[int | str]]  # of each input; a free one is a product such as "2*rows"

_ONE: Bounds = (1, 1, 1)


def free_dims(preset: Preset, network: str, graph: str, extent: Extent = "any") -> Free:
    """What a network's stage sends to one of its graphs.

    Args:
        preset: what is served.
        network: the stage's name.
        graph: one of the engine's.
        extent: of the pictures.

    Returns:
        The bounds of every free dim. Height and width are bounded apart: a network that takes 1280 x 704 and
        704 x 1280 also takes 1280 x 1280.
    """
    match network:
        case tensors.TEXT_ENCODER.name:
            return {"batch": (1, 2, MAX_PROMPTS)}
        case tensors.VAE_ENCODER.name:
            return _latents(preset, ["video2world"], extent)
        case tensors.VAE_DECODER.name:
            return _latents(preset, _decoded(preset, graph), extent)
        case tensors.GUARDRAIL_VIDEO.name:
            return _frames(preset, graph, extent)
        case tensors.TEXT2IMAGE_DENOISER.name:
            return _denoised(preset, "text2image", extent)
        case tensors.VIDEO2WORLD_DENOISER.name:
            return _denoised(preset, "video2world", extent)
    raise EngineBuildError(f"{network} has no plan: its engine isn't made by predict2-export")


def profile(dims: Dims, free: Free, source: str) -> dict[str, Range]:
    """The shapes of a graph's inputs.

    Args:
        dims: of its inputs.
        free: the bounds of their free dims.
        source: what an error calls the graph.

    Raises:
        EngineBuildError: a dim is free and `free` says nothing of it.
    """
    return {
        name: Range(*(tuple(_value(dim, free, which, source) for dim in shape) for which in range(3)))
        for name, shape in dims.items()
    }  # fmt: skip


def input_dims(path: Path) -> dict[str, tuple[int | str, ...]]:
    """The inputs of an ONNX file and their dims; its weights aren't read."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {
        value.name: tuple(
            dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim
        )
        for value in graph.input
    }


def _value(dim: int | str, free: Free, which: int, source: str) -> int:
    if isinstance(dim, int):
        return dim
    factors = dim.replace(" ", "").split("*")
    unknown = [f for f in factors if not f.isdigit() and f not in free]
    if unknown:
        raise EngineBuildError(
            f"{source} has a free dim {dim!r} and no bounds are known for {', '.join(unknown)}, only for "
            f"{', '.join(free)}; name its dims so, or give it bounds in profiles.py"
        )
    return math.prod(int(f) if f.isdigit() else free[f][which] for f in factors)


def _denoised(preset: Preset, task: Task, extent: Extent) -> Free:
    rows, columns = _tokens(preset, [task], extent)
    guided = 1 if preset.distilled and task == "text2image" else 2
    frames = latent_frames(preset.max_frames(task))
    tokens = preset.text_encoder.num_tokens
    return {
        "batch": (1, guided, 2),
        "frames": (1, frames, frames),
        "tokens": (tokens, tokens, tokens),
        "rows": rows,
        "columns": columns,
    }


def _decoded(preset: Preset, graph: str) -> list[Task]:
    """Whose latents a decoder's graph gets; it is tuned for the first. A picture is nothing but a first chunk."""
    pictures: list[Task] = ["text2image"]
    clips: list[Task] = ["video2world"] if preset.video2world else []
    return pictures + clips if graph == "first" else clips or pictures


def _latents(preset: Preset, tasks: Sequence[Task], extent: Extent) -> Free:
    rows, columns = (_times(PATCH, sides) for sides in _tokens(preset, tasks, extent))
    # The stages stream one latent frame at a time.
    return {"latent_frames": _ONE, "latent_height": rows, "latent_width": columns}


def _frames(preset: Preset, graph: str, extent: Extent) -> Free:
    batch = (1, BATCH, BATCH) if preset.video2world else _ONE
    if graph != FACES:
        return {"batch": batch}
    tasks: list[Task] = ["video2world", "text2image"] if preset.video2world else ["text2image"]
    sides = (_times(PIXEL_MULTIPLE, sides) for sides in _tokens(preset, tasks, extent))
    return {"batch": batch, **dict(zip(("height", "width"), sides, strict=True))}


def _times(factor: int, bounds: Bounds) -> Bounds:
    least, best, most = bounds
    return factor * least, factor * best, factor * most


def _tokens(preset: Preset, tasks: Sequence[Task], extent: Extent) -> tuple[Bounds, Bounds]:
    """Rows and columns of the pictures of `tasks` in tokens, tuned for the first one's default."""
    width, height = preset.size(tasks[0], GenerationRequest.aspect_ratio)
    found = []
    for axis, default in ((1, height), (0, width)):  # of (width, height)
        bounds = [_side(preset, task, axis, extent) for task in tasks]
        least, most = min(low for low, _ in bounds), max(high for _, high in bounds)
        found.append((least, default // PIXEL_MULTIPLE, most))
    return found[0], found[1]


def _side(preset: Preset, task: Task, axis: int, extent: Extent) -> tuple[int, int]:
    """The shortest and the longest side in tokens; `axis` is 0 for the width, 1 for the height."""
    sizes = preset.image_sizes if task == "text2image" else preset.video_sizes
    if extent == "table":
        sides = [size[axis] // PIXEL_MULTIPLE for size in sizes.values()]
        return min(sides), max(sides)
    _, rows, columns = preset.dit(task).max_grid
    across = preset.max_pixels(task) // PIXEL_MULTIPLE**2  # tokens in a row of nothing else
    return 1, min(across, (columns, rows)[axis])
