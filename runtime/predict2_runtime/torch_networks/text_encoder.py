# SPDX-License-Identifier: Apache-2.0
"""The encoder of T5 for inference; it rounds where transformers' does.

Dims in comments: B prompts, N tokens of one, D model width, E channels of a head.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import TextEncoderSpec

from .fused import EPS, merge_heads, split_heads
from .recording import Recordings

Read = Callable[[str], Tensor]  # a weight by the checkpoint's name, on its device and in its dtype
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """Weights of one layer; what multiplies the same input is one matrix."""

    attention_norm: Tensor  # [D]
    qkv: Tensor  # [3 * heads * E, D]
    out: Tensor  # [D, heads * E]
    mlp_norm: Tensor
    mlp_in: Tensor  # [ff width, D]
    mlp_out: Tensor


@dataclass(frozen=True)
class TextEncoderWeights:
    """Weights of the whole encoder."""

    spec: TextEncoderSpec
    embeddings: Tensor  # [vocabulary, D]
    bias: Tensor  # [buckets, heads], by how far a key is from a query
    layers: tuple[Layer, ...]
    norm: Tensor  # [D]


def text_encoder_weights(spec: TextEncoderSpec, read: Read) -> TextEncoderWeights:
    """The weights of a network, packed.

    Raises:
        InvalidRequestError: they are another network's.
    """
    embeddings, expected = read("encoder.embed_tokens.weight"), [spec.vocab_size, spec.width]
    if list(embeddings.shape) != expected:
        raise InvalidRequestError(
            f"the weights are of another encoder: its embeddings are {list(embeddings.shape)}, not {expected}"
        )
    first = "encoder.block.0.layer.0.SelfAttention"
    return TextEncoderWeights(
        spec,
        embeddings,
        read(f"{first}.relative_attention_bias.weight"),
        tuple(_layer(f"encoder.block.{index}", read) for index in range(spec.num_layers)),
        read("encoder.final_layer_norm.weight"),
    )


def _layer(name: str, read: Read) -> Layer:
    attention, mlp = f"{name}.layer.0", f"{name}.layer.1"
    return Layer(
        read(f"{attention}.layer_norm.weight"),
        torch.cat([read(f"{attention}.SelfAttention.{part}.weight") for part in "qkv"]),
        read(f"{attention}.SelfAttention.o.weight"),
        read(f"{mlp}.layer_norm.weight"),
        read(f"{mlp}.DenseReluDense.wi.weight"),
        read(f"{mlp}.DenseReluDense.wo.weight"),
    )


def encode(weights: TextEncoderWeights, input_ids: Tensor, mask: Tensor, bias: Tensor) -> Tensor:
    """Embeddings [B, N, D], zero where the mask is.

    Args:
        weights: the network's.
        input_ids: int64 [B, N].
        mask: [B, N], 1 on a prompt's tokens and 0 on padding.
        bias: `position_bias` of N tokens.
    """
    x = F.embedding(input_ids, weights.embeddings)
    padding = x.new_zeros(mask.shape).masked_fill(mask == 0, torch.finfo(x.dtype).min)
    bias = bias + padding[:, None, None]
    for layer in weights.layers:
        qkv = F.linear(_norm(x, layer.attention_norm), layer.qkv).chunk(3, dim=-1)
        q, k, v = (split_heads(part, weights.spec.head_dim) for part in qkv)
        # T5 doesn't divide its scores; they are rounded before the softmax, which is float32's.
        scores = q @ k.transpose(2, 3) + bias
        wide = torch.promote_types(x.dtype, torch.float32)
        y = scores.softmax(-1, dtype=wide).to(x.dtype) @ v
        x = x + F.linear(merge_heads(y), layer.out)
        y = F.relu(F.linear(_norm(x, layer.mlp_norm), layer.mlp_in))
        x = x + F.linear(y, layer.mlp_out)
    # The denoiser attends to all positions and was trained with zeros past the prompt's end.
    return _norm(x, weights.norm) * mask[..., None].to(x.dtype)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def position_bias(weights: TextEncoderWeights, tokens: int) -> Tensor:
    """What is added to scores: [1, heads, N, N], queries by keys."""
    position = torch.arange(tokens)
    buckets = _buckets(position[None] - position[:, None], weights.spec)
    values = F.embedding(buckets.to(weights.bias.device), weights.bias)  # [N, N, heads]
    return values.permute(2, 0, 1)[None].contiguous()


def _buckets(distance: Tensor, spec: TextEncoderSpec) -> Tensor:
    """Which bias a key has that lies `distance` tokens after its query.

    Half of the buckets are for keys after it. Of each half, half are for one distance each, and the others are wider
    and wider up to the largest distance; all beyond share the last.
    """
    half = spec.num_buckets // 2
    exact = half // 2
    far = distance.abs()
    # at 0, where a logarithm is none, the distance itself counts
    steps = torch.log(far.clamp_min(1).float() / exact) / math.log(spec.max_distance / exact)
    wide = (exact + (steps * (half - exact)).long()).clamp_max(half - 1)
    return (distance > 0).long() * half + torch.where(far < exact, far, wide)


class TorchTextEncoder:
    """An Engine of the text encoder: `input_ids`, `attention_mask` -> `prompt_embeds`."""

    inputs = ("input_ids", "attention_mask")

    def __init__(self, weights: TextEncoderWeights, recorded: int = 0) -> None:
        """With weights on the device and of the dtype to compute in, and CUDA graphs to keep, one for a shape each."""
        self._weights = weights
        self._recordings = Recordings(recorded)
        self._bias = lru_cache(2)(lambda tokens: position_bias(weights, tokens))

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Tensors:
        """Encode prompts [B, N], both inputs of integers: `prompt_embeds` [B, N, D] in the weights' dtype.

        Raises:
            InvalidRequestError: an input is missing or unknown, or not like the other.
        """
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        if shapes.keys() != set(self.inputs) or len(set(shapes.values())) != 1:
            raise InvalidRequestError(
                f"the text encoder takes {' and '.join(self.inputs)} of one shape, not {shapes}"
            )
        device = self._weights.norm.device
        ids, mask = (inputs[name].to(device) for name in self.inputs)
        (embeds,) = self._recordings(self._encode, (ids, mask), (self._bias(ids.shape[1]),))
        return {"prompt_embeds": embeds}

    def _encode(self, ids: Tensor, mask: Tensor, bias: Tensor) -> tuple[Tensor]:
        return (encode(self._weights, ids, mask, bias),)
