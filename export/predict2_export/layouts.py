# SPDX-License-Identifier: Apache-2.0
"""Where a preset's files may lie: NVIDIA's own layout first, then diffusers' in the same repositories."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from predict2_spec.networks import VaeSpec
from predict2_spec.presets import Preset

# The only denoisers that are published in diffusers' layout too, by their original files.
ALSO_DIFFUSERS = ("Text2Image/model.pt", "Video2World/model-720p-16fps.pt")


def candidates(preset: Preset) -> dict[str, list[str]]:
    """Field of the preset -> the paths below the checkpoint folder that may hold it, best first.

    The text encoder in diffusers' layout is a bfloat16 one of 9.7 GB; the original's file takes 45 GB.
    """
    repos = [_repo(path) for path in (preset.video2world_path, preset.text2image_path) if path]
    also = {
        "text_encoder_path": [f"{repo}/text_encoder" for repo in repos],
        "tokenizer_path": [f"{repo}/tokenizer/tokenizer.json" for repo in repos],
        "vae_path": [f"{repo}/vae" for repo in repos] if isinstance(preset.vae, VaeSpec) else [],
    }
    for field in ("text2image_path", "video2world_path"):
        path = getattr(preset, field)
        also[field] = [f"{_repo(path)}/transformer"] if path.endswith(ALSO_DIFFUSERS) else []
    return {field: [getattr(preset, field), *others] for field, others in also.items()}


def located(preset: Preset, checkpoints: Path) -> Preset:
    """The preset with the paths of the files that are there; where none is, its own path stays."""
    found: dict[str, Any] = {
        field: next((p for p in paths if p and (checkpoints / p).exists()), paths[0])
        for field, paths in candidates(preset).items()
    }
    return replace(preset, **found)


def _repo(path: str) -> str:
    return "/".join(PurePosixPath(path).parts[:2])
