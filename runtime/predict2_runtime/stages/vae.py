# SPDX-License-Identifier: Apache-2.0
"""The two VAE stages: frames to latents and back, streamed chunk by chunk through explicit caches."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from predict2_runtime.engines import NUMPY, Engine, Placement, open_engine
from predict2_runtime.frames import from_unit_range, to_unit_range
from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.presets import Preset
from predict2_spec.tensors import VAE_DECODER, VAE_ENCODER
from predict2_spec.video import TEMPORAL_STRIDE, LatentShape, VideoShape

from . import Arrays, check_made
from .warming import TWO_CHUNKS, warming_shapes

_CACHE_OUT, _CACHE_IN = "next_cache_", "cache_"


def _stream(
    first: Engine, following: Engine, name: str, chunks: Iterable[Any]
) -> Iterator[dict[str, Any]]:
    """Run the first chunk, then each later one with the caches the one before left.

    The caches are the engine's own arrays throughout: they stay on its device and of its type.
    """
    caches: dict[str, Any] = {}
    for index, chunk in enumerate(chunks):
        outputs = (following if index else first)({name: chunk, **caches})
        caches = {
            _CACHE_IN + key.removeprefix(_CACHE_OUT): outputs.pop(key)
            for key in list(outputs)
            if key.startswith(_CACHE_OUT)
        }
        yield outputs


def _no_more(inputs: Mapping[str, Any]) -> dict[str, Any]:
    raise InvalidRequestError(
        "latents of a clip were sent and this server's vae_decoder decodes pictures only; send one latent frame"
    )


@dataclass(frozen=True)
class VaeEncoder:
    """Frames to normalised latents: the first frame alone, then four at a time."""

    preset: Preset
    first: Engine
    following: Engine
    placement: Placement = NUMPY  # the engines'
    warming: tuple[VideoShape, ...] = ()

    @classmethod
    def open(cls, folder: Path, preset: Preset) -> "VaeEncoder":
        """The stage whose engine is installed in `folder`."""
        opened = open_engine(folder, VAE_ENCODER.name)
        shapes = warming_shapes(opened.manifest, preset, "video2world", TWO_CHUNKS)
        return cls(preset, opened.graphs["first"], opened.graphs["next"], opened.placement, shapes)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`frames` UINT8 [1 + 4k, H, W, 3] -> `latents` FP32 [16, 1 + k, H/8, W/8].

        Raises:
            InvalidRequestError: a size the preset doesn't take.
            ServerError: the engine made NaN or infinite values.
        """
        frames = inputs["frames"]
        self.preset.check("video2world", VideoShape(*frames.shape[:3]))
        video = to_unit_range(frames).transpose(3, 0, 1, 2)[None]  # [1, 3, F, H, W]
        chunks = [video[:, :, :1]]
        starts = range(1, video.shape[2], TEMPORAL_STRIDE)
        chunks += [video[:, :, i : i + TEMPORAL_STRIDE] for i in starts]
        placed = map(self.placement.to_engine, chunks)
        parts = [
            self.placement.to_numpy(out["latents"])
            for out in _stream(self.first, self.following, "frames", placed)
        ]
        latents = np.concatenate(parts, axis=2)[0]
        check_made(VAE_ENCODER.name, latents)
        return {"latents": latents}

    def warm_up(self) -> None:
        """Encode black frames."""
        for shape in self.warming:
            self({"frames": np.zeros((shape.frames, shape.height, shape.width, 3), np.uint8)})


@dataclass(frozen=True)
class VaeDecoder:
    """Normalised latents to frames, one latent frame at a time: 1 frame, then 4 for each."""

    preset: Preset
    first: Engine
    following: Engine
    placement: Placement = NUMPY  # the engines'
    warming: tuple[VideoShape, ...] = ()

    @classmethod
    def open(cls, folder: Path, preset: Preset) -> "VaeDecoder":
        """The stage whose engine is installed in `folder`."""
        opened = open_engine(folder, VAE_DECODER.name)
        following = opened.graphs.get("next", _no_more)  # images have one graph
        shapes = warming_shapes(opened.manifest, preset, preset.tasks[-1], TWO_CHUNKS)
        return cls(preset, opened.graphs["first"], following, opened.placement, shapes)

    def __call__(self, inputs: Arrays) -> dict[str, Any]:
        """`latents` FP32 [16, T, h, w] -> `frames` UINT8 [4 (T - 1) + 1, 8h, 8w, 3].

        Raises:
            InvalidRequestError: a size the preset doesn't make, or values that are no numbers.
            ServerError: the engine made NaN or infinite values.
        """
        latents = inputs["latents"][None]
        shape = LatentShape(*latents.shape[2:]).pixels
        self.preset.check("text2image" if shape.frames == 1 else "video2world", shape)
        if not np.isfinite(latents).all():
            raise InvalidRequestError(
                "latents hold NaN or infinite values; there is nothing to decode"
            )
        chunks = [latents[:, :, i : i + 1] for i in range(latents.shape[2])]
        placed = map(self.placement.to_engine, chunks)
        parts = [
            self.placement.to_numpy(_pictures(out["frames"][0]))
            for out in _stream(self.first, self.following, "latents", placed)
        ]
        return {"frames": np.concatenate(parts)}

    def warm_up(self) -> None:
        """Decode latents of zeros."""
        for shape in self.warming:
            latent = shape.latent
            dims = (LATENT_CHANNELS, latent.frames, latent.height, latent.width)
            self({"latents": np.zeros(dims, np.float32)})


def _pictures(frames: Any) -> Any:
    """Floats [3, F, H, W] as bytes [F, H, W, 3], where they are: bytes take a quarter of the way to the CPU."""
    check_made(VAE_DECODER.name, frames)
    return from_unit_range(array_namespace(frames).permute_dims(frames, (1, 2, 3, 0)))
