# SPDX-License-Identifier: Apache-2.0
"""What a kernel computes in one pass: plain torch here, a single node in an exported graph.

A node has the name of the TensorRT plugin that computes it and, in the same file, a function of that
name made of standard operators (`onnx_functions.py`). A runtime without the plugin takes the function.

Dims in comments: B batch, T latent frames, S tokens of a frame, N tokens, D model width, E channels
of an attention head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of every norm in the network
DOMAIN = "predict2"  # of the nodes, and the plugins' namespace
VERSION = "1"  # of the plugins


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines [2, positions, channels] of each axis, cut to the grid of the tokens."""

    frames: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """All three."""
        return self.frames, self.rows, self.columns

    @cached_property
    def of_tokens(self) -> Tensor:
        """Those of every token, [2, N, E/2]; tokens by frame, row and column."""
        frames, rows, columns = (table.shape[1] for table in self.tables)
        parts = [
            self.frames[:, :, None, None].expand(-1, -1, rows, columns, -1),
            self.rows[:, None, :, None].expand(-1, frames, -1, columns, -1),
            self.columns[:, None, None].expand(-1, frames, rows, -1, -1),
        ]
        return torch.cat(parts, dim=-1).flatten(1, 3)


def adaln_modulate(x: Tensor, modulation: Tensor) -> Tensor:
    """LayerNorm without weights, then x * (1 + scale) + shift.

    Args:
        x: [B, T, S, D].
        modulation: [B, T, 2D or more]; shift and scale come first.
    """
    if torch.onnx.is_in_onnx_export():
        return _node("Predict2Modulate", [x, modulation], like=[x])[0]
    shift, scale = _of_frame(modulation, x.shape[-1])[:2]
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


def gated_residual_modulate(
    x: Tensor, y: Tensor, modulation: Tensor, following: Tensor
) -> tuple[Tensor, Tensor]:
    """A sub-layer's output joins the stream, which the next sub-layer takes modulated.

    Args:
        x: the stream, [B, T, S, D].
        y: the output, of as many elements.
        modulation: of this sub-layer: shift, scale and gate, [B, T, 3D].
        following: of the next one, [B, T, 2D or more].

    Returns:
        x + gate * y, and its `adaln_modulate`; both [B, T, S, D].
    """
    if torch.onnx.is_in_onnx_export():
        inputs = [x, y, modulation, following]
        total, u = _node("Predict2GatedModulate", inputs, like=[x, x])
        return total, u
    gate = _of_frame(modulation, x.shape[-1])[2]
    total = x + gate * y.view_as(x)
    return total, adaln_modulate(total, following)


def queries_and_keys(
    q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], rotation: Rotation | None
) -> tuple[Tensor, Tensor]:
    """RMSNorm of each head, then rotation: [B, heads, N, E] both."""
    q, k = (
        F.rms_norm(split_heads(x, len(w)), w.shape, w, EPS)
        for x, w in zip((q, k), weights, strict=True)
    )
    if rotation is not None:
        q, k = (rotate(x, rotation.of_tokens) for x in (q, k))
    return q, k


def attention(
    q: Tensor, k: Tensor, v: Tensor, weights: tuple[Tensor, Tensor], rotation: Rotation | None
) -> Tensor:
    """Attention with normalised, rotated queries and keys; every key takes part.

    In a graph the softmax's 1 / sqrt(E) is folded into the queries while they are float32: TensorRT
    would multiply queries and keys by its root in their own dtype, which bf16 rounds by 0.3 %.

    Args:
        q: [B, N, D].
        k: [B, M, D].
        v: [B, M, D].
        weights: of the norms of queries and keys, [E] each.
        rotation: of the tokens; None where there is none.

    Returns:
        [B, N, D].
    """
    if not torch.onnx.is_in_onnx_export():
        q, k = queries_and_keys(q, k, weights, rotation)
        y = F.scaled_dot_product_attention(q, k, split_heads(v, len(weights[0])))
        return merge_heads(y)
    width = len(weights[0])
    name = "Predict2QkNormRope" if rotation else "Predict2QkNorm"
    tables = rotation.tables if rotation else ()
    prepared = _node(
        name,
        [q, k, *weights, *tables],
        like=[split_heads(q, width), split_heads(k, width)],
        num_heads=q.shape[-1] // width,
        heads_first=1,
        q_scale=width**-0.5,
    )
    inputs = [*prepared, split_heads(v, width)]
    return merge_heads(_node("Predict2Attention", inputs, like=prepared[:1])[0])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn channel j of [B, heads, N, E] with channel j + E/2, in fp32 at least, back in its dtype."""
    cos, sin = rotation[0], rotation[1]
    first, second = parts(x, 2)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def merge_heads(y: Tensor) -> Tensor:
    """[B, heads, N, E] -> [B, N, D]."""
    return y.transpose(1, 2).flatten(2)


def parts(x: Tensor, count: int) -> list[Tensor]:
    """The last axis in `count` equal slices; `chunk` becomes a sequence in ONNX, which TensorRT can't parse."""
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def split_heads(x: Tensor, width: int) -> Tensor:
    """[B, N, heads * width] -> [B, heads, N, width]."""
    return x.view(*x.shape[:2], x.shape[-1] // width, width).transpose(1, 2)


def _of_frame(modulation: Tensor, width: int) -> list[Tensor]:
    """[B, T, P * D] -> P times [B, T, 1, D]."""
    return parts(modulation[:, :, None], modulation.shape[-1] // width)


def _node(
    name: str, inputs: Sequence[Tensor], like: Sequence[Tensor], **attributes: float
) -> list[Tensor]:
    """A node of ours with outputs of the shapes and dtypes of `like`."""
    # TensorRT's parser looks for a plugin before it takes the function only where it is told the namespace.
    named: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": VERSION, **attributes}
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        inputs,
        named,
        dtypes=[t.dtype for t in like],
        shapes=[t.shape for t in like],
        version=int(VERSION),
    )
    return list(outputs)
