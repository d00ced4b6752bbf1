# SPDX-License-Identifier: Apache-2.0
"""The text encoder: transformers' T5 stack under its own parameter names, padding rows zeroed."""

from torch import Tensor, nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5LayerNorm, T5Stack

from predict2_spec.networks import TextEncoderSpec


class TextEncoder(nn.Module):
    """Token ids -> embeddings that the denoiser's cross-attention reads."""

    def __init__(self, spec: TextEncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        config = t5_config(spec)
        self.encoder = T5Stack(config)
        # The same norms in torch's own words, which lower to one operator. transformers' mean over an axis becomes
        # an axis that is computed, which TensorRT's parser refuses.
        for owner, name in _norms(self.encoder):
            setattr(owner, name, nn.RMSNorm(spec.width, eps=config.layer_norm_epsilon))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode prompts.

        Args:
            input_ids: int64 [B, N], padded with id 0.
            attention_mask: int64 [B, N], 1 on the prompt's tokens and 0 on padding.

        Returns:
            prompt_embeds [B, N, width] in the parameters' dtype, zero where the mask is.

        Raises:
            IndexError: an id is beyond the vocabulary.
        """
        hidden_states: Tensor = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        # The denoiser attends to all positions and was trained with zeros past the prompt's end.
        return hidden_states * attention_mask[..., None].to(hidden_states.dtype)


def _norms(encoder: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every norm of the stack, as the module that holds it and its name there."""
    return [
        (owner, name)
        for owner in encoder.modules()
        for name, part in owner.named_children()
        if isinstance(part, T5LayerNorm)
    ]


def t5_config(spec: TextEncoderSpec) -> T5Config:
    """The encoder half of a T5 in transformers' words."""
    return T5Config(
        d_model=spec.width,
        d_kv=spec.head_dim,
        d_ff=spec.ff_width,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        vocab_size=spec.vocab_size,
        relative_attention_num_buckets=spec.num_buckets,
        relative_attention_max_distance=spec.max_distance,
        feed_forward_proj="relu",
        dropout_rate=0.0,  # the encoder only infers
        is_decoder=False,
        is_encoder_decoder=False,
        use_cache=False,
        # Written out as matmuls and softmax: the form that every exporter and runtime knows.
        attn_implementation="eager",  # type: ignore[call-arg]
    )
