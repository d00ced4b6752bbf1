# SPDX-License-Identifier: Apache-2.0
"""The VAE as four graphs for `torch.onnx.export`: encoder and decoder, first and later chunks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.video import SPATIAL_STRIDE, TEMPORAL_STRIDE

from .export_graph import ExportGraph
from .vae import IMAGE_CHANNELS, Vae, check_multiple

_LATENT_FRAMES, _LATENT_HEIGHT, _LATENT_WIDTH = (
    Dim(f"latent_{name}") for name in ("frames", "height", "width")
)


class EncoderGraph(nn.Module):
    """`Vae.encode_chunk` with flat arguments and results; without caches it's the first chunk."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """(frames, caches...) -> (latents, caches...), shaped as in `Vae.encode_chunk`."""
        latents, kept = self.vae.encode_chunk(frames, caches or None)
        return latents, *kept


class DecoderGraph(nn.Module):
    """`Vae.decode_chunk` with flat arguments and results; without caches it's the first chunk."""

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """(latents, caches...) -> (frames, caches...), shaped as in `Vae.decode_chunk`."""
        frames, kept = self.vae.decode_chunk(latents, caches or None)
        return frames, *kept


def export_graphs(vae: Vae, height: int, width: int) -> dict[str, dict[str, ExportGraph]]:
    """The four graphs of a VAE: `vae_encoder` and `vae_decoder`, each with `first` and `next`.

    `first` takes one frame or latent frame; `next` takes 4 * t frames or t latent frames, and
    inputs `cache_00`, `cache_01`, ... after it. All return outputs `next_cache_00`, ... after their
    result: the caches of the next call. Batch is 1; t, height and width are free.

    Args:
        vae: the network, in the dtype the graphs shall have.
        height: of the example frames, a multiple of 8 and at least 16. A small one saves time.
        width: likewise.

    Raises:
        InvalidRequestError: height or width is no multiple of 8.
    """
    for name, value in (("height", height), ("width", width)):
        check_multiple(name, value, SPATIAL_STRIDE)
    unit = (height // SPATIAL_STRIDE, width // SPATIAL_STRIDE)
    vae = vae.eval()
    frames = vae.mean.new_zeros(1, IMAGE_CHANNELS, 2 * TEMPORAL_STRIDE, height, width)
    latents = vae.mean.new_zeros(1, LATENT_CHANNELS, 2, *unit)
    return {
        "vae_encoder": _first_and_next(
            EncoderGraph(vae), "frames", "latents", (frames, TEMPORAL_STRIDE * _LATENT_FRAMES), unit
        ),
        "vae_decoder": _first_and_next(
            DecoderGraph(vae), "latents", "frames", (latents, _LATENT_FRAMES), unit
        ),
    }


def _first_and_next(
    module: nn.Module, source: str, result: str, later: tuple[Tensor, Any], unit: tuple[int, int]
) -> dict[str, ExportGraph]:
    """Describe both graphs of a network.

    Args:
        module: the network, called with a chunk and its caches.
        source: name of the chunk.
        result: name of what becomes of it.
        later: an example of a later chunk and its free number of frames.
        unit: latent rows and columns of the example, of which all sizes are multiples.
    """
    chunk, num_frames = later
    first = chunk[:, :, :1]
    with torch.no_grad():
        caches = module.eval()(first)[1:]

    def free(x: Tensor) -> dict[int, Any]:
        return {
            3: x.shape[3] // unit[0] * _LATENT_HEIGHT,
            4: x.shape[4] // unit[1] * _LATENT_WIDTH,
        }

    names = [f"cache_{index:02}" for index in range(len(caches))]
    outputs = (result, *(f"next_{name}" for name in names))
    return {
        "first": ExportGraph(module, (first,), (source,), outputs, (free(first),)),
        "next": ExportGraph(
            module,
            (chunk, *caches),
            (source, *names),
            outputs,
            ({2: num_frames, **free(chunk)}, tuple(free(cache) for cache in caches)),
        ),
    }
