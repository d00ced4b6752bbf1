# SPDX-License-Identifier: Apache-2.0
"""Names of the published layouts -> the names of our modules, which are the original's.

The maps know nothing of what the names stand for: tensors, stored tensors or anything else.
"""

import re
from collections.abc import Mapping
from typing import TypeVar

from predict2_spec.errors import CheckpointError
from predict2_spec.networks import VaeSpec

V = TypeVar("V")

# What training left in the files beside the weights, and tables that the network makes itself.
_DIT_IGNORED = re.compile(
    r"accum_(video_sample_counter|image_sample_counter|iteration|train_in_hours)"
    r"|pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)"
    r"|(.*\.)?_extra_state"
)
_DIT_NAMES = {  # diffusers' CosmosTransformer3DModel -> the original
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}
_DIT_BLOCK_NAMES = {
    "norm1.linear_1": "adaln_modulation_self_attn.1",
    "norm1.linear_2": "adaln_modulation_self_attn.2",
    "norm2.linear_1": "adaln_modulation_cross_attn.1",
    "norm2.linear_2": "adaln_modulation_cross_attn.2",
    "norm3.linear_1": "adaln_modulation_mlp.1",
    "norm3.linear_2": "adaln_modulation_mlp.2",
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
    **{
        f"{theirs}.{their_layer}": f"{ours}.{our_layer}"
        for theirs, ours in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for their_layer, our_layer in (
            ("to_q", "q_proj"),
            ("to_k", "k_proj"),
            ("to_v", "v_proj"),
            ("to_out.0", "output_proj"),
            ("norm_q", "q_norm"),
            ("norm_k", "k_norm"),
        )
    },
}


def dit_state_dict(state: Mapping[str, V], *, ema: bool = False) -> dict[str, V]:
    """A denoiser's weights under the original's names without prefix.

    Args:
        state: NVIDIA's names with `net.` (and `net_ema.`) before them or without, or diffusers'.
            Names of neither kind are left as they are, for `load_strict` to refuse.
        ema: take the moving average of the weights, which post-training keeps beside them.

    Raises:
        CheckpointError: `ema` was asked for and the checkpoint holds none.
    """
    prefix = "net_ema." if ema else "net."
    if ema and not any(key.startswith(prefix) for key in state):
        raise CheckpointError(
            f"the checkpoint holds no averaged weights ({prefix}*); load it without ema"
        )
    if any(key.startswith(prefix) for key in state):
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {dit_name(key): v for key, v in state.items() if not _DIT_IGNORED.fullmatch(key)}


def dit_name(key: str) -> str:
    """The original's name for a denoiser's tensor that diffusers calls `key`; other names stay."""
    module, _, parameter = key.rpartition(".")
    if block := re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module):
        number, layer = block.groups()
        return f"blocks.{number}.{_DIT_BLOCK_NAMES.get(layer, layer)}.{parameter}"
    return f"{_DIT_NAMES[module]}.{parameter}" if module in _DIT_NAMES else key


_VAE_LAYERS = {  # of a residual block
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}
_VAE_MODULES = {
    "conv_in": "conv1",
    "mid_block.resnets.0": "middle.0",
    "mid_block.attentions.0": "middle.1",
    "mid_block.resnets.1": "middle.2",
    "norm_out": "head.0",
    "conv_out": "head.2",
}


def vae_state_dict(state: Mapping[str, V], spec: VaeSpec) -> dict[str, V]:
    """A VAE's weights under the names of the released Wan 2.1 file.

    Args:
        state: those names already, or the names of diffusers' AutoencoderKLWan.
        spec: says how many blocks a level has, which diffusers' names count and Wan's don't.
    """
    if "encoder.conv_in.weight" not in state:
        return dict(state)
    return {_vae_name(key, spec): value for key, value in state.items()}


def _vae_name(key: str, spec: VaeSpec) -> str:
    key = re.sub(r"^quant_conv\.", "conv1.", key)
    key = re.sub(r"^post_quant_conv\.", "conv2.", key)
    key = re.sub(  # before other names become `conv1`
        rf"(resnets\.\d|down_blocks\.\d+)\.({'|'.join(_VAE_LAYERS)})\.",
        lambda match: f"{match[1]}.{_VAE_LAYERS[match[2]]}.",
        key,
    )
    key = re.sub(
        rf"^(encoder|decoder)\.({'|'.join(map(re.escape, _VAE_MODULES))})\.",
        lambda match: f"{match[1]}.{_VAE_MODULES[match[2]]}.",
        key,
    )
    key = re.sub(r"^encoder\.down_blocks\.", "encoder.downsamples.", key)
    level_size = (
        spec.num_blocks + 2
    )  # a decoder level: one block more than spec's, and the resampler
    key = re.sub(
        r"^decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.",
        lambda match: f"decoder.upsamples.{int(match[1]) * level_size + int(match[2])}.",
        key,
    )
    return re.sub(
        r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda match: f"decoder.upsamples.{int(match[1]) * level_size + level_size - 1}.",
        key,
    )


def text_encoder_state_dict(state: Mapping[str, V]) -> dict[str, V]:
    """A T5's encoder under transformers' names, its embedding stored once as the encoder's own."""
    encoder = {k: v for k, v in state.items() if not k.startswith(("decoder.", "lm_head."))}
    # T5 has one embedding; files name it `shared`, the encoder's, or both.
    shared = encoder.pop("shared.weight", None)
    if shared is not None:
        encoder.setdefault("encoder.embed_tokens.weight", shared)
    return encoder


_LEFT_BY_TRAINING = re.compile(r".*\.num_batches_tracked")  # batches a norm has seen


def face_detector_state_dict(state: Mapping[str, V]) -> dict[str, V]:
    """A RetinaFace's weights without its heads for landmarks.

    Args:
        state: the released file's names, `module.` before them or not.
    """
    plain = {key.removeprefix("module."): value for key, value in _lasting(state).items()}
    return {key: value for key, value in plain.items() if not key.startswith("LandmarkHead.")}


def vision_tower_state_dict(state: Mapping[str, V]) -> dict[str, V]:
    """The half of a SigLIP that sees, from the whole under transformers' names."""
    prefix = "vision_model."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def classifier_state_dict(state: Mapping[str, V]) -> dict[str, V]:
    """A content classifier's weights under the names of its own layers."""
    return {key.removeprefix("network."): value for key, value in _lasting(state).items()}


def _lasting(state: Mapping[str, V]) -> dict[str, V]:
    return {key: value for key, value in state.items() if not _LEFT_BY_TRAINING.fullmatch(key)}
