# SPDX-License-Identifier: Apache-2.0
"""The denoiser: a diffusion transformer whose parameters carry the original checkpoint's names.

Dims in comments: B batch, C channels, T latent frames, H W latent size, h w token rows and columns,
S = h*w tokens of a frame, N tokens, D model width, E channels of an attention head.
"""

import math
from collections.abc import Callable
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict2_spec.networks import LATENT_CHANNELS, Axes, DitSpec, Neighborhood
from predict2_spec.video import PATCH

from .fused import (
    EPS,
    Rotation,
    adaln_modulate,
    attention,
    gated_residual_modulate,
    merge_heads,
    queries_and_keys,
    split_heads,
)
from .neighborhood import neighborhood_attention

THETA = 10000.0  # base of the rotary and of the time frequencies


class Dit(nn.Module):
    """Predicts the flow velocity (noise minus clean latents) of noisy latents."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.spec = spec
        self.x_embedder = PatchEmbed(spec)
        self.t_embedder = nn.Sequential(Sinusoid(spec.width), TimeMlp(spec.width))
        self.t_embedding_norm = nn.RMSNorm(spec.width, eps=EPS)
        self.pos_embedder = RotaryTables(spec)
        self.blocks = nn.ModuleList(Block(spec, kind) for kind in spec.block_neighborhoods)
        self.final_layer = FinalLayer(spec)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        condition_mask: Tensor | None = None,
    ) -> Tensor:
        """One evaluation of the network, in the dtype of its parameters (bf16, fp32 or fp64).

        Args:
            hidden_states: [B, 16, T, H, W], noisy latents times 1/(sigma+1); H and W are even and
                the token grid (T, H/2, W/2) is no larger than `spec.max_grid`. Networks with
                neighborhoods scale them to the grid, but were trained on NEIGHBORHOOD_GRID alone.
            timestep: [B, T], sigma/(sigma+1) of every latent frame, in 0..1.
            encoder_hidden_states: [B, N, text_width]; all N positions take part in attention.
            condition_mask: [B, 1, T, H, W], 1 on conditioning frames and 0 elsewhere; given exactly
                when `spec.condition_mask`.

        Returns:
            Velocity [B, 16, T, H, W].

        Raises:
            RuntimeError: from torch, when a shape or dtype is none of the above.
        """
        _, _, frames, height, width = hidden_states.shape
        grid = (frames, height // PATCH, width // PATCH)
        rotation = self.pos_embedder(grid)

        sinusoid = self.t_embedder[0](timestep.to(hidden_states.dtype))  # [B, T, D]
        time_shift = self.t_embedder[1](sinusoid)  # [B, T, 3D], added to every block's modulation
        time = self.t_embedding_norm(sinusoid)  # the bare sinusoid, not the MLP's output

        x = self.x_embedder(hidden_states, condition_mask)  # [B, T, S, D]
        blocks = cast("list[Block]", list(self.blocks))
        own = [block.modulations(time, time_shift) for block in blocks]
        firsts = [
            *(modulations[0] for modulations in own),
            self.final_layer.modulation(time, time_shift),
        ]
        u = adaln_modulate(x, firsts[0])
        for block, modulations, following in zip(blocks, own, firsts[1:], strict=True):
            x, u = block(x, u, modulations, following, encoder_hidden_states, rotation, grid)
        return unpatchify(self.final_layer(u), grid)


class PatchEmbed(nn.Module):
    """Latents and mask channels -> one token for each 2x2 patch."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        # The checkpoint calls the layer `proj.1`: its `proj.0` only rearranges.
        self.proj = nn.Sequential(nn.Identity(), linear(spec.patch_inputs, spec.width))

    def forward(self, hidden_states: Tensor, condition_mask: Tensor | None) -> Tensor:
        """[B, 16, T, H, W] and [B, 1, T, H, W] -> [B, T, S, D]."""
        # The padding mask marks rows and columns outside the picture; inference has none.
        padding_mask = torch.zeros_like(hidden_states[:, :1])
        parts = [hidden_states, condition_mask, padding_mask]
        x = torch.cat([part for part in parts if part is not None], dim=1)
        batch, channels, frames, height, width = x.shape
        x = x.reshape(batch, channels, frames, height // PATCH, PATCH, width // PATCH, PATCH)
        x = x.permute(0, 2, 3, 5, 1, 4, 6)  # [B, T, h, w, C, 2, 2]
        tokens: Tensor = self.proj(x.flatten(4).flatten(2, 3))
        return tokens


def unpatchify(patches: Tensor, grid: Axes) -> Tensor:
    """[B, T, S, 64] -> [B, 16, T, H, W]; features are (2, 2, C), another order than the input's."""
    x = patches.reshape(-1, *grid, PATCH, PATCH, LATENT_CHANNELS)
    x = x.permute(0, 6, 1, 2, 4, 3, 5)  # [B, C, T, h, 2, w, 2]
    return x.flatten(5, 6).flatten(3, 4)


class Sinusoid(nn.Module):
    """Time -> cosines and sines of `width`/2 frequencies 10000^(-i / (width/2))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_frequencies = width // 2

    def forward(self, timestep: Tensor) -> Tensor:
        """[B, T] -> [B, T, D] in the dtype of `timestep`, formed in fp32 at least."""
        dtype = torch.promote_types(timestep.dtype, torch.float32)
        index = torch.arange(self.num_frequencies, dtype=dtype, device=timestep.device)
        frequencies = torch.exp(-math.log(THETA) * (index / self.num_frequencies))
        angles = timestep.to(dtype)[..., None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=-1).to(timestep.dtype)


class TimeMlp(nn.Module):
    """Sinusoid -> the part of shift, scale and gate that all sub-layers share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = linear(width, width)
        self.linear_2 = linear(width, 3 * width)

    def forward(self, sinusoid: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, 3D]."""
        shift: Tensor = self.linear_2(F.silu(self.linear_1(sinusoid)))
        return shift


class RotaryTables(nn.Module):
    """Cosines and sines of the rotary angles: one table an axis, [2, positions, channels/2].

    A token's angles are those of its frame, its row and its column, one after the other.
    """

    frames: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        axes = zip(spec.max_grid, spec.rope_dims, spec.rope_scale, strict=True)
        frames, rows, columns = (
            rotary_table(rotary_angles(*axis, dtype=getattr(torch, spec.rope_dtype)))
            for axis in axes
        )
        self.register_buffer("frames", frames, persistent=False)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, grid: Axes) -> Rotation:
        """The tables cut to a grid (T, h, w), in fp32."""
        frames, rows, columns = grid
        return Rotation(self.frames[:, :frames], self.rows[:, :rows], self.columns[:, :columns])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # A cast of the whole network must not round the tables: the original keeps them in fp32.
        tables = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, table in tables.items():
            setattr(self, name, table.to(getattr(self, name).device))
        return self


def rotary_angles(positions: int, channels: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Angles [positions, channels/2] in fp32, formed in `dtype` step by step as the original does.

    Angle of position p and frequency i: p * theta^(-2i/channels), with theta = 10000 *
    scale^(channels/(channels-2)), which stretches the longest wave by `scale`. In bf16 every step
    rounds, theta included, and angles end up to 0.3 rad off: the released weights were trained so.
    """
    # On the CPU always: tables are real even where parameters are on the meta device.
    theta = torch.tensor(THETA * scale ** (channels / (channels - 2)), dtype=dtype, device="cpu")
    exponents = torch.arange(0, channels, 2, dtype=torch.float32, device="cpu") / channels
    frequencies = 1.0 / theta ** exponents.to(dtype)
    position = torch.arange(positions, dtype=torch.float32, device="cpu").to(dtype)
    return torch.outer(position, frequencies).float()


def rotary_table(angles: Tensor) -> Tensor:
    """Cosines and sines of angles, stacked: [2, *angles.shape]."""
    return torch.stack([angles.cos(), angles.sin()])


class Block(nn.Module):
    """Self-attention, cross-attention and MLP, each modulated and gated by the time."""

    def __init__(self, spec: DitSpec, neighborhood: Neighborhood | None) -> None:
        super().__init__()
        width, rank = spec.width, spec.adaln_rank
        self.adaln_modulation_self_attn = modulation(width, rank, count=3)
        self.adaln_modulation_cross_attn = modulation(width, rank, count=3)
        self.adaln_modulation_mlp = modulation(width, rank, count=3)
        self.self_attn = Attention(spec, width, neighborhood)
        self.cross_attn = Attention(spec, spec.text_width)
        self.mlp = Mlp(width, spec.mlp_ratio * width)

    def modulations(self, time: Tensor, time_shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, scale and gate [B, T, 3D] of each sub-layer; time [B, T, D], time_shift [B, T, 3D]."""
        return (
            self.adaln_modulation_self_attn(time) + time_shift,
            self.adaln_modulation_cross_attn(time) + time_shift,
            self.adaln_modulation_mlp(time) + time_shift,
        )

    def forward(  # the last three are the same for every block
        self,
        x: Tensor,
        u: Tensor,
        modulations: tuple[Tensor, Tensor, Tensor],
        following: Tensor,
        text: Tensor,
        rotation: Rotation,
        grid: Axes,
    ) -> tuple[Tensor, Tensor]:
        """The stream x [B, T, S, D] and u, which is x modulated for this block -> both for what follows.

        `following` modulates for the next block or the final layer; text is [B, N, text_width].
        """
        of_self, of_cross, of_mlp = modulations
        tokens = u.flatten(1, 2)
        y = self.self_attn(tokens, tokens, rotation, grid)
        x, u = gated_residual_modulate(x, y, of_self, of_cross)
        y = self.cross_attn(u.flatten(1, 2), text)
        x, u = gated_residual_modulate(x, y, of_cross, of_mlp)
        return gated_residual_modulate(x, self.mlp(u), of_mlp, following)


class Attention(nn.Module):
    """Attention with normalised queries and keys; the context is `x` itself or the text."""

    def __init__(
        self, spec: DitSpec, context_width: int, neighborhood: Neighborhood | None = None
    ) -> None:
        super().__init__()
        self.neighborhood = neighborhood  # None is dense
        self.q_proj = linear(spec.width, spec.width)
        self.k_proj = linear(context_width, spec.width)
        self.v_proj = linear(context_width, spec.width)
        self.output_proj = linear(spec.width, spec.width)
        self.q_norm = nn.RMSNorm(spec.head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(spec.head_dim, eps=EPS)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        rotation: Rotation | None = None,
        grid: Axes | None = None,
    ) -> Tensor:
        """x [B, N, D], context [B, M, context_width] -> [B, N, D]; `grid` is that of the tokens."""
        q, k, v = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        weights = self.q_norm.weight, self.k_norm.weight
        if (
            self.neighborhood and grid and grid[0] > 1
        ):  # a single frame is dense, as in the original
            sparse = self.neighborhood.on(grid)
            q, k = queries_and_keys(q, k, weights, rotation)
            y = merge_heads(neighborhood_attention(q, k, split_heads(v, q.shape[-1]), grid, sparse))
        else:
            # No mask: the padded, zeroed text positions take part, as they did in training.
            y = attention(q, k, v, weights, rotation)
        out: Tensor = self.output_proj(y)
        return out


class Mlp(nn.Module):
    """Two layers with an exact GELU between."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.layer1 = linear(width, hidden_width)
        self.layer2 = linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        out: Tensor = self.layer2(F.gelu(self.layer1(x)))
        return out


class FinalLayer(nn.Module):
    """Tokens -> output patches."""

    def __init__(self, spec: DitSpec) -> None:
        super().__init__()
        self.adaln_modulation = modulation(spec.width, spec.adaln_rank, count=2)
        self.linear = linear(spec.width, spec.patch_outputs)

    def modulation(self, time: Tensor, time_shift: Tensor) -> Tensor:
        """Shift and scale [B, T, 2D]; time [B, T, D], time_shift [B, T, 3D]."""
        own: Tensor = self.adaln_modulation(time)
        return own + time_shift[..., : own.shape[-1]]

    def forward(self, u: Tensor) -> Tensor:
        """The modulated stream [B, T, S, D] -> [B, T, S, 64]."""
        patches: Tensor = self.linear(u)
        return patches


def modulation(width: int, rank: int, count: int) -> nn.Sequential:
    """The low-rank map from the time to `count` of shift, scale and gate."""
    return nn.Sequential(nn.SiLU(), linear(width, rank), linear(rank, count * width))


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer; none in this network has a bias."""
    return nn.Linear(inputs, outputs, bias=False)
