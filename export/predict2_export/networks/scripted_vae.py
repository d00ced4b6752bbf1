# SPDX-License-Identifier: Apache-2.0
"""An image decoder that exists as a TorchScript program only, and its graph for `torch.onnx.export`."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._export.converter import TS2EPConverter
from torch.export import Dim
from torch.jit import ScriptModule

from predict2_spec.errors import CheckpointError
from predict2_spec.networks import LATENT_CHANNELS
from predict2_spec.video import SPATIAL_STRIDE

from .export_graph import ExportGraph
from .vae import IMAGE_CHANNELS

# How programs write dtypes: the numbers of c10::ScalarType.
_HALF, _FLOAT, _BFLOAT16 = 5, 6, 15


class ImageDecoder(nn.Module):
    """Normalised latents [1, 16, 1, h, w] to a picture [1, 3, 1, 8h, 8w], in float32."""

    def __init__(self, program: nn.Module, mean: Tensor, std: Tensor) -> None:
        """Put a program that decodes [1, 16, h, w] behind its statistics, each of 16 channels."""
        super().__init__()
        self.program = program
        self.mean: Tensor
        self.std: Tensor
        shape = (1, LATENT_CHANNELS, 1, 1, 1)
        self.register_buffer("mean", mean.reshape(shape))
        self.register_buffer("std", std.reshape(shape))

    def forward(self, latents: Tensor) -> Tensor:
        """Decode one latent frame."""
        frames: Tensor = self.program((latents * self.std + self.mean).squeeze(2))
        return frames.unsqueeze(2)


def scripted_image_decoder(
    program: ScriptModule, mean: Tensor, std: Tensor, source: str
) -> ImageDecoder:
    """A decoder that runs a TorchScript program in float32.

    Args:
        program: it is changed, and must not have run yet.
        mean: of the latents, [16].
        std: likewise.
        source: what the message of an error calls the program's file.

    Raises:
        CheckpointError: the program can't run on this machine or is no decoder.
    """
    retarget(program)
    rows, columns = 2, 3
    latents = torch.zeros(1, LATENT_CHANNELS, 1, rows, columns)
    expected = (1, IMAGE_CHANNELS, 1, SPATIAL_STRIDE * rows, SPATIAL_STRIDE * columns)
    decoder = ImageDecoder(program, mean, std).eval().requires_grad_(False)
    try:
        frames = decoder(latents)
    except Exception as error:  # whatever a foreign program raises
        raise CheckpointError(
            f"the decoder in {source} fails on latents {list(latents[:, :, 0].shape)} "
            f"({_last_line(error)}); it is another kind of tokenizer"
        ) from error
    if tuple(frames.shape) != expected:
        raise CheckpointError(
            f"the decoder in {source} makes {list(frames.shape)} of latents {list(latents.shape)}, "
            f"not {list(expected)}; it is another kind of tokenizer"
        )
    return decoder


def retarget(program: ScriptModule) -> None:
    """Make a program compute in float32 on the CPU, whatever it was traced in and wherever.

    Weights follow `float` and `map_location`. But a trace writes its dtype into every cast and its
    device into every tensor it makes, and those stay.
    """
    program.float()
    graph: Any = program.graph
    torch._C._jit_pass_inline(graph)
    for node in list(_nodes(graph)):
        for position, name in enumerate(_argument_names(node)):
            new = _replacement(name, list(node.inputs())[position])
            if new is not None:
                graph.setInsertPoint(node)
                node.replaceInput(position, graph.insertConstant(new))


def _nodes(block: Any) -> Iterator[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def _argument_names(node: Any) -> list[str]:
    if not node.kind().startswith("aten::"):
        return []
    return [argument.name for argument in torch._C.parse_schema(node.schema()).arguments]


def _replacement(name: str, value: Any) -> int | torch.device | None:
    """What a constant argument should be instead."""
    if name not in ("dtype", "device") or value.node().kind() != "prim::Constant":
        return None
    constant = value.toIValue()
    if name == "device":
        return None if constant is None else torch.device("cpu")
    return _FLOAT if constant in (_HALF, _BFLOAT16) else None


def lowerable(decoder: ImageDecoder, source: str) -> ImageDecoder:
    """The same decoder with its program as a graph of torch's, which the exporter can trace.

    Raises:
        CheckpointError: the program does what such a graph can't, such as loops of unknown length.
    """
    like = decoder.mean.new_zeros(1, LATENT_CHANNELS, 4, 6)
    try:
        program = TS2EPConverter(cast(ScriptModule, decoder.program), (like,)).convert().module()
    except Exception as error:  # the converter raises what it happens on
        raise CheckpointError(
            f"the decoder in {source} can't be made an engine ({_last_line(error)}); programs of torch.jit.trace "
            "can, those of torch.jit.script have checks and loops in them that torch can't convert"
        ) from error
    graph = ImageDecoder(program, decoder.mean, decoder.std)
    graph.training = False  # eval() would ask the program, which has no other mode and refuses
    return graph


def _last_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]:.120}"


def export_graph(decoder: nn.Module, height: int, width: int) -> ExportGraph:
    """The graph of a decoder; height and width are free and these, in pixels, are the example's."""
    assert isinstance(decoder, ImageDecoder)
    rows, columns = height // SPATIAL_STRIDE, width // SPATIAL_STRIDE
    latents = decoder.mean.new_zeros(1, LATENT_CHANNELS, 1, rows, columns)
    free = {3: Dim("latent_height"), 4: Dim("latent_width")}
    return ExportGraph(decoder, (latents,), ("latents",), ("frames",), (free,))
