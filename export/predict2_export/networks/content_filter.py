# SPDX-License-Identifier: Apache-2.0
"""SigLIP's vision tower and a classifier on its answer: is this picture safe, and if not, why?

The tower is that of "Sigmoid Loss for Language Image Pre-Training" (2023), under transformers' names, which
the released files have. transformers' own class keeps a table of positions that has no place in a network
without storage, so the tower is written out here; the tests compare the two.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict2_spec.networks import ContentFilterSpec

from .batch_norm import BatchNorm

NUM_CLASSES = 7
EPS = 1e-6


class ContentFilter(nn.Module):
    """A picture -> a score for every class; the largest is the answer."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.vision_model = VisionTower(spec)
        self.network = Classifier(spec)

    def forward(self, picture: Tensor) -> Tensor:
        """float32 [B, 3, S, S] in -1..1, RGB, S the spec's image size -> logits [B, 7]."""
        features = self.vision_model(picture)
        # F.normalize written out: its norm lowers to an axis that is computed, which TensorRT's parser refuses.
        length = features.square().sum(dim=-1, keepdim=True).sqrt().clamp_min(1e-12)
        logits: Tensor = self.network(features / length)
        return logits


class Classifier(nn.Module):
    """Features of length 1 -> a score for every class."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        first, second = spec.hidden
        self.layers = nn.Sequential(
            *(nn.Linear(spec.width, first), BatchNorm(first), nn.ReLU()),
            *(nn.Linear(first, second), BatchNorm(second), nn.ReLU()),
            nn.Linear(second, NUM_CLASSES),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, width] -> logits [B, 7]."""
        logits: Tensor = self.layers(features)
        return logits


class VisionTower(nn.Module):
    """A vision transformer, its norms before the layers, and one query that sums up what it saw."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.embeddings = Embeddings(spec)
        self.encoder = Encoder(spec)
        self.post_layernorm = nn.LayerNorm(spec.width, eps=EPS)
        self.head = PoolingHead(spec)

    def forward(self, picture: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, width]."""
        x = self.encoder(self.embeddings(picture))
        pooled: Tensor = self.head(self.post_layernorm(x))
        return pooled


class Embeddings(nn.Module):
    """Patches, and where they are."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, spec.width, spec.patch, stride=spec.patch)
        # Pixels right and below of the last whole patch aren't seen.
        self.position_embedding = nn.Embedding((spec.image_size // spec.patch) ** 2, spec.width)

    def forward(self, picture: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, width]."""
        patches: Tensor = self.patch_embedding(picture)
        return patches.flatten(2).transpose(1, 2) + self.position_embedding.weight


class Encoder(nn.Module):
    """Layers in a row."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class Layer(nn.Module):
    """Attention and an MLP, each added to what it reads."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(spec.width, eps=EPS)
        self.self_attn = SelfAttention(spec)
        self.layer_norm2 = nn.LayerNorm(spec.width, eps=EPS)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        y: Tensor = x + self.mlp(self.layer_norm2(x))
        return y


class SelfAttention(nn.Module):
    """Every patch looks at every patch."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        width = spec.width
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        y: Tensor = self.out_proj(
            attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.num_heads)
        )
        return y


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """softmax(q k' / sqrt(d)) v for every head of width d: [B, N, D] and twice [B, M, D] -> [B, N, D]."""
    head_width = q.shape[-1] // num_heads
    q, k, v = (x.reshape(*x.shape[:2], num_heads, head_width).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Two layers with the tanh form of GELU between."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.width, spec.ff_width)
        self.fc2 = nn.Linear(spec.ff_width, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> the same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class PoolingHead(nn.Module):
    """A learned query asks all patches; an MLP works on the answer."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, spec.width))
        self.attention = PackedAttention(spec)
        self.layernorm = nn.LayerNorm(spec.width, eps=EPS)
        self.mlp = Mlp(spec)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> [B, width]."""
        answer = self.attention(self.probe.expand(x.shape[0], -1, -1), x)
        y: Tensor = answer + self.mlp(self.layernorm(answer))
        return y[:, 0]


class PackedAttention(nn.Module):
    """Attention whose three input projections are one matrix, as nn.MultiheadAttention stores them."""

    def __init__(self, spec: ContentFilterSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        width = spec.width
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """[B, N, width] asks [B, M, width] -> [B, N, width]."""
        width = query.shape[-1]
        weights, biases = (
            self.in_proj_weight.view(3, width, width),
            self.in_proj_bias.view(3, width),
        )
        q, k, v = (
            F.linear(x, weights[part], biases[part])
            for part, x in enumerate((query, context, context))
        )
        y: Tensor = self.out_proj(attention(q, k, v, self.num_heads))
        return y
