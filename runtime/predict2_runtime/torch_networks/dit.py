# SPDX-License-Identifier: Apache-2.0
"""The denoiser's arithmetic: its weights, what depends on time or text alone, and one evaluation of the rest.

Dims in comments: B batch, C channels, T latent frames, H W latent size, h w token rows and columns, S = h*w tokens of
a frame, N = T*S tokens, F = B*T frames of a batch, M text tokens, D model width, R adaln rank, E channels of a head,
K distinct times.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from predict2_spec.errors import InvalidRequestError
from predict2_spec.networks import LATENT_CHANNELS, Axes, DitSpec
from predict2_spec.video import PATCH

from .fused import (
    EPS,
    gated_modulate,
    gelu,
    merge_heads,
    modulate,
    normalized_heads,
    queries_and_keys,
    split_heads,
)
from .products import Fp8Weight, Quantized, Rows, Weight, packed, product
from .rotary import THETA, Rotation

SUBLAYERS = ("self_attn", "cross_attn", "mlp")  # of a block, each with a modulation
Read = Callable[[str], Weight]  # by the checkpoint's name, on its device and in its dtype


@dataclass(frozen=True)
class Block:
    """Weights of one block; what multiplies the same input is one matrix."""

    self_qkv: Weight  # [3D, D]
    self_norms: tuple[Tensor, Tensor]  # of queries and keys, [E] each
    self_out: Weight  # [D, D]
    cross_q: Weight  # [D, D]
    cross_kv: Weight  # [2D, text width]
    cross_norms: tuple[Tensor, Tensor]
    cross_out: Weight
    mlp_in: Weight  # [4D, D]
    mlp_out: Weight  # [D, 4D]


@dataclass(frozen=True)
class DitWeights:
    """Weights of the whole network."""

    spec: DitSpec
    patch: Tensor  # [D, patch inputs]
    time_in: Tensor  # [D, D]
    time_out: Tensor  # [3D, D]
    time_norm: Tensor  # [D]
    modulation_in: Tensor  # [3 * blocks * R, D], every block's sub-layers in turn
    modulation_out: Tensor  # [3 * blocks, R, 3D], transposed for a batched product
    final_in: Tensor  # [R, D]
    final_out: Tensor  # [2D, R]
    final: Tensor  # [patch outputs, D]
    blocks: tuple[Block, ...]


def dit_weights(spec: DitSpec, read: Read) -> DitWeights:
    """The weights of a network, packed.

    Raises:
        InvalidRequestError: they are another network's.
    """

    def plain(name: str) -> Tensor:
        weight = read(f"{name}.weight")
        if not isinstance(weight, Tensor):
            raise InvalidRequestError(f"{name} is in 8 bits, which it can't be")
        return weight

    patch, expected = plain("x_embedder.proj.1"), [spec.width, spec.patch_inputs]
    if list(patch.shape) != expected:
        raise InvalidRequestError(
            f"the weights are of another denoiser: its patches are {list(patch.shape)}, not {expected}"
        )
    adaln = [
        f"blocks.{i}.adaln_modulation_{part}" for i in range(spec.num_blocks) for part in SUBLAYERS
    ]
    return DitWeights(
        spec=spec,
        patch=patch,
        time_in=plain("t_embedder.1.linear_1"),
        time_out=plain("t_embedder.1.linear_2"),
        time_norm=plain("t_embedding_norm"),
        modulation_in=torch.cat([plain(f"{name}.1") for name in adaln]),
        modulation_out=torch.stack([plain(f"{name}.2").t() for name in adaln]),
        final_in=plain("final_layer.adaln_modulation.1"),
        final_out=plain("final_layer.adaln_modulation.2"),
        final=plain("final_layer.linear"),
        blocks=tuple(_block(f"blocks.{i}", read, plain) for i in range(spec.num_blocks)),
    )


def _block(name: str, read: Read, plain: Callable[[str], Tensor]) -> Block:
    def of(*names: str) -> Weight:
        return packed([read(f"{name}.{part}.weight") for part in names])

    def norms(part: str) -> tuple[Tensor, Tensor]:
        return plain(f"{name}.{part}.q_norm"), plain(f"{name}.{part}.k_norm")

    return Block(
        self_qkv=of("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        self_norms=norms("self_attn"),
        self_out=of("self_attn.output_proj"),
        cross_q=of("cross_attn.q_proj"),
        cross_kv=of("cross_attn.k_proj", "cross_attn.v_proj"),
        cross_norms=norms("cross_attn"),
        cross_out=of("cross_attn.output_proj"),
        mlp_in=of("mlp.layer1"),
        mlp_out=of("mlp.layer2"),
    )


@dataclass(frozen=True)
class Modulations:
    """Shift, scale and gate of every sub-layer, and shift and scale of the final layer, a row for each time."""

    sublayers: Tensor  # [3 * blocks, K, 3D]
    final: Tensor  # [K, 2D]

    def at(self, index: Tensor) -> "Modulations":
        """The rows of these times, in their order."""
        return Modulations(self.sublayers.index_select(1, index), self.final.index_select(0, index))


def modulations(weights: DitWeights, times: Tensor) -> Modulations:
    """Those of times [K], which are in the network's dtype."""
    sinusoid = _sinusoid(times, weights.spec.width)  # [K, D]
    shared = F.linear(F.silu(F.linear(sinusoid, weights.time_in)), weights.time_out)  # [K, 3D]
    # the norm is of the bare sinusoid, not of the MLP's output
    time = F.silu(F.rms_norm(sinusoid, weights.time_norm.shape, weights.time_norm, EPS))
    rank = weights.spec.adaln_rank
    low = torch.unflatten(
        F.linear(time, weights.modulation_in), -1, (-1, rank)
    )  # [K, 3 * blocks, R]
    own = F.linear(F.linear(time, weights.final_in), weights.final_out)  # [K, 2D]
    return Modulations(
        low.transpose(0, 1) @ weights.modulation_out + shared, own + shared[:, : own.shape[-1]]
    )


def _sinusoid(times: Tensor, width: int) -> Tensor:
    """Cosines and sines of width/2 frequencies, [K] -> [K, width], formed in float32 at least."""
    dtype = torch.promote_types(times.dtype, torch.float32)
    index = torch.arange(width // 2, dtype=dtype, device=times.device)
    frequencies = torch.exp(-math.log(THETA) * (index / (width // 2)))
    angles = times.to(dtype)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(times.dtype)


@dataclass(frozen=True)
class Text:
    """What cross-attention reads of the prompts: every block's keys, normalised, and values."""

    rows: (
        slice  # of the batch; the text of all others is zero, and so is what attention makes of it
    )
    keys: Tensor  # [blocks, rows, heads, M, E]
    values: Tensor

    def of(self, row: int) -> "Text":
        """That of one row of the batch."""
        place = row - self.rows.start
        reads = slice(place, place + 1) if self.rows.start <= row < self.rows.stop else slice(0)
        keys = self.keys[:, reads]
        return Text(slice(0, keys.shape[1]), keys, self.values[:, reads])


def read_text(weights: DitWeights, embeds: Tensor, rows: slice) -> Text:
    """Keys and values of prompts [B, M, text width]; outside of `rows` they must be zero."""
    heads = weights.spec.head_dim
    chosen = embeds[rows]
    # filled in turn, so that there are never two copies
    shape = (len(weights.blocks), len(chosen), weights.spec.num_heads, chosen.shape[1], heads)
    keys, values = chosen.new_empty(shape), chosen.new_empty(shape)
    for index, block in enumerate(weights.blocks):
        k, v = product(chosen, block.cross_kv).chunk(2, dim=-1)
        keys[index] = normalized_heads(k, block.cross_norms[1])
        values[index] = split_heads(v, heads)
    return Text(rows, keys, values)


@dataclass(frozen=True)
class Prepared:
    """All that one evaluation reads beside the weights."""

    hidden_states: Tensor  # [B, 16, T, H, W]
    condition_mask: Tensor | None  # [B, 1, T, H, W]
    modulations: Modulations  # of B*T frames
    text: Text
    rotation: Rotation
    shared: bool = False  # rows differ by their text alone, so that they are one up to the first cross-attention

    def by_row(self) -> Iterator["Prepared"]:
        """Each row by itself."""
        frames = self.hidden_states.shape[2]
        for row in range(len(self.hidden_states)):
            times = slice(row * frames, (row + 1) * frames)
            mask, of_times = self.condition_mask, self.modulations
            yield Prepared(
                self.hidden_states[row : row + 1],
                None if mask is None else mask[row : row + 1],
                Modulations(of_times.sublayers[:, times], of_times.final[times]),
                self.text.of(row),
                self.rotation,
            )


def evaluate(weights: DitWeights, inputs: Prepared) -> Tensor:
    """The velocity [B, 16, T, H, W], in the network's dtype."""
    batch, _, *size = inputs.hidden_states.shape
    grid = (size[0], size[1] // PATCH, size[2] // PATCH)
    rows = 1 if inputs.shared else batch
    mask = inputs.condition_mask
    patches = _patchify(inputs.hidden_states[:rows], None if mask is None else mask[:rows])
    x = F.linear(patches, weights.patch)  # [F, S, D]
    of_layers = [*inputs.modulations.sublayers, inputs.modulations.final]  # [F, 3D or 2D] each
    # what multiplies the modulated stream next, and so whether that is in 8 bits
    first = [_coded(block.self_qkv) for block in weights.blocks] + [False]
    u = modulate(x, of_layers[0][: len(x)], first[0])
    for index, block in enumerate(weights.blocks):
        of_self, of_cross, of_mlp, following = of_layers[3 * index : 3 * index + 4]
        reads = bool(inputs.text.keys.shape[1])
        y = _self_attention(block, u, grid, inputs.rotation)
        x, u = gated_modulate(
            x, y, of_self[: len(x)], of_cross[: len(x)], reads and _coded(block.cross_q)
        )
        if len(x) < batch * grid[0]:  # only in the first block
            x = x.repeat(batch, 1, 1)
            u = u.repeated(batch) if isinstance(u, Quantized) else u.repeat(batch, 1, 1)
        if reads:
            y = _cross_attention(block, u, grid, inputs.text, index)
            x, u = gated_modulate(x, y, of_cross, of_mlp, _coded(block.mlp_in))
        else:
            u = modulate(x, of_mlp, _coded(block.mlp_in))
        y = product(gelu(product(u, block.mlp_in), _coded(block.mlp_out)), block.mlp_out)
        x, u = gated_modulate(x, y, of_mlp, following, first[index + 1])
    return _unpatchify(product(u, weights.final), grid)


def _coded(weight: Weight) -> bool:
    return isinstance(weight, Fp8Weight)


def _self_attention(block: Block, u: Rows, grid: Axes, rotation: Rotation) -> Tensor:
    """[F, S, D] -> [F, S, D]; the frames of a row see each other."""
    qkv = _of_rows(product(u, block.self_qkv), grid)
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = queries_and_keys(q, k, block.self_norms, rotation)
    y = F.scaled_dot_product_attention(q, k, split_heads(v, q.shape[-1]))
    return _of_frames(product(merge_heads(y), block.self_out), grid)


def _cross_attention(block: Block, u: Rows, grid: Axes, text: Text, index: int) -> Tensor:
    """[F, S, D] -> [F, S, D]. No mask: zeroed positions of a prompt take part, as they did in training."""
    frames = slice(text.rows.start * grid[0], text.rows.stop * grid[0])
    asking = u.at(frames) if isinstance(u, Quantized) else u[frames]
    q = normalized_heads(_of_rows(product(asking, block.cross_q), grid), block.cross_norms[0])
    y = F.scaled_dot_product_attention(q, text.keys[index], text.values[index])
    out = _of_frames(product(merge_heads(y), block.cross_out), grid)
    total = len(u.codes if isinstance(u, Quantized) else u)
    if len(out) == total:
        return out
    whole = out.new_zeros((total, *out.shape[1:]))
    whole[frames] = out
    return whole


def _of_rows(x: Tensor, grid: Axes) -> Tensor:
    """[F, S, D] -> [B, N, D]."""
    return torch.unflatten(x, 0, (-1, grid[0])).flatten(1, 2)


def _of_frames(x: Tensor, grid: Axes) -> Tensor:
    """[B, N, D] -> [F, S, D]."""
    return torch.unflatten(x, 1, (grid[0], -1)).flatten(0, 1)


def _patchify(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """[B, 16, T, H, W] and [B, 1, T, H, W] -> [F, S, patch inputs], features by channel, row and column."""
    # The last channel marks rows and columns outside the picture; inference has none.
    parts = [hidden_states, mask, torch.zeros_like(hidden_states[:, :1])]
    x = torch.cat([part for part in parts if part is not None], dim=1)
    x = torch.unflatten(torch.unflatten(x, 4, (-1, PATCH)), 3, (-1, PATCH))  # [B, C, T, h, 2, w, 2]
    return x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3).flatten(0, 1)


def _unpatchify(patches: Tensor, grid: Axes) -> Tensor:
    """[F, S, 64] -> [B, 16, T, H, W]; features are (2, 2, C), another order than the input's."""
    x = patches.reshape(-1, *grid, PATCH, PATCH, LATENT_CHANNELS)
    x = x.permute(0, 6, 1, 2, 4, 3, 5)  # [B, C, T, h, 2, w, 2]
    return x.flatten(5, 6).flatten(3, 4)
