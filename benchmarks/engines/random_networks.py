# SPDX-License-Identifier: Apache-2.0
"""Networks of the real sizes with random weights, drawn where they are used: 14 billion take a CPU minutes."""

import math
import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from predict2_spec.networks import TextEncoderSpec

Network = TypeVar("Network", bound=nn.Module)


def random_weight(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Normal weights of deviation 1/sqrt(inputs), norms of 1, biases of 0; of the dtype and device of `like`."""
    if name.endswith("bias"):
        return like.new_zeros(shape)
    if math.prod(shape) == shape[0]:  # a norm's
        return like.new_ones(shape)
    return like.new_empty(shape).normal_(0.0, (shape[0] / math.prod(shape)) ** 0.5)


def random_network(make: Callable[[], Network], like: Tensor) -> Network:
    """A network whose weights have the dtype and device of `like`."""
    with torch.device("meta"):
        network = make()
    for name, parameter in list(network.named_parameters()):
        path, _, own = name.rpartition(".")
        value = random_weight(name, tuple(parameter.shape), like)
        setattr(network.get_submodule(path), own, nn.Parameter(value, requires_grad=False))
    return network.to(like.device, like.dtype).eval()


def text_encoder_reader(spec: TextEncoderSpec, like: Tensor) -> Callable[[str], Tensor]:
    """Reads random weights of a T5 encoder by their names. Without transformers, which a GPU machine may not have."""
    inner = spec.num_heads * spec.head_dim
    shapes = {
        "embed_tokens": (spec.vocab_size, spec.width),
        "relative_attention_bias": (spec.num_buckets, spec.num_heads),
        "[qkv]": (inner, spec.width),
        "o": (spec.width, inner),
        "wi": (spec.ff_width, spec.width),
        "wo": (spec.width, spec.ff_width),
        "(final_)?layer_norm": (spec.width,),
    }

    def read(name: str) -> Tensor:
        layer = name.split(".")[-2]
        shape = next(shape for part, shape in shapes.items() if re.fullmatch(part, layer))
        return random_weight(name, shape, like)

    return read
