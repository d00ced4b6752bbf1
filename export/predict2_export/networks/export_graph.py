# SPDX-License-Identifier: Apache-2.0
"""A module together with all that lowering it to one ONNX graph needs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class ExportGraph:
    """A graph to lower, in the words of `torch.onnx.export(dynamo=True)`."""

    module: nn.Module
    args: tuple[Tensor, ...]  # examples
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_shapes: tuple[Any, ...]
