# SPDX-License-Identifier: Apache-2.0
"""The two networks that look at frames before they leave the server, and their graphs."""

import torch
from torch import Tensor, nn
from torch.export import Dim

from predict2_spec.networks import FrameGuardSpec

from .content_filter import ContentFilter
from .export_graph import ExportGraph
from .face_detector import FaceDetector

EXAMPLE_PIXELS = (64, 96)  # rows and columns of the face detector's example; free in the graph


class FrameGuard(nn.Module):
    """One module to hold both; they share nothing and are called apart."""

    def __init__(self, spec: FrameGuardSpec) -> None:
        super().__init__()
        self.spec = spec
        self.faces = FaceDetector(spec.faces)
        self.content = ContentFilter(spec.content)

    def graphs(self) -> dict[str, ExportGraph]:
        """`faces`, for pictures of any size, and `content`, for pictures of its own."""
        batch, size = Dim("batch"), self.spec.content.image_size
        free = {0: batch, 2: Dim("height"), 3: Dim("width")}
        return {
            "faces": ExportGraph(
                self.faces,
                (self._example(*EXAMPLE_PIXELS),),
                ("picture",),
                ("boxes", "probability"),
                (free,),
            ),
            "content": ExportGraph(
                self.content, (self._example(size, size),), ("picture",), ("logits",), ({0: batch},)
            ),
        }

    def _example(self, height: int, width: int) -> Tensor:
        like = next(self.parameters())
        return torch.zeros(2, 3, height, width, dtype=like.dtype)
