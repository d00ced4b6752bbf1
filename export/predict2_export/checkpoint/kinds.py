# SPDX-License-Identifier: Apache-2.0
"""What a network is, told from the names and shapes of its tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from predict2_spec.networks import DitSpec
from predict2_spec.presets import PRESETS, Task

Kind = Literal[
    "denoiser", "VAE", "T5 encoder", "T5 decoder", "LoRA adapter",
    "face detector", "vision tower", "content classifier", "",
]  # fmt: skip
Shapes = Mapping[str, tuple[int, ...]]

_KINDS: tuple[tuple[Kind, str], ...] = (  # by names that no other kind has; the first that matches
    ("denoiser", r"(net\.|net_ema\.)?(x_embedder|blocks\.\d+\.(self|cross)_attn|patch_embed|transformer_blocks)\..*"),
    ("VAE", r"(encoder|decoder)\.(conv1|conv_in|downsamples|upsamples|down_blocks|up_blocks|middle|mid_block)\..*"),
    ("T5 encoder", r"encoder\.block\.\d+\.layer\..*"),
    ("T5 decoder", r"decoder\.block\.\d+\.layer\..*"),
    ("face detector", r"(module\.)?(fpn|ssh1|ClassHead|BboxHead)\..*"),
    ("vision tower", r"vision_model\.(embeddings|encoder|head)\..*"),
    ("content classifier", r"network\.layers\.\d+\..*"),
)  # fmt: skip
# Members of the family that this product doesn't serve, by a name that only they have.
_VARIANTS = (
    (r"(.*\.)?view_embeddings\..*", "a multiview denoiser"),
    (r"(.*\.)?action_embedder_.*", "an action-conditioned denoiser"),
    (r"(.*\.)?crossattn_proj\..*", "a denoiser for the Reason1 text encoder"),
    (r"encoder\.block\.\d+\.layer\.\d+\.DenseReluDense\.wi_0\..*", "a T5 v1.1 or UMT5, not the T5 of 2019"),
    (r"blocks\.\d+\.(self_attn\.q|cross_attn\.q|ffn\.\d)\..*", "a Wan denoiser"),
    (r"(model|language_model|visual)\..*(layers|blocks)\.\d+\..*", "a language model"),
)  # fmt: skip


def kind_of(keys: Iterable[str]) -> Kind:
    """The network that tensors of these names belong to; "" when it's none of ours."""
    names = list(keys)
    if any(".lora_" in name for name in names) and not any(
        ".base_layer." in name for name in names
    ):
        return "LoRA adapter"
    for kind, pattern in _KINDS:
        if any(re.fullmatch(pattern, name) for name in names):
            return kind
    return ""


def variant_of(keys: Iterable[str]) -> str:
    """The network that isn't served, with its article; "" when nothing says so."""
    names = list(keys)
    for pattern, variant in _VARIANTS:
        if any(re.fullmatch(pattern, name) for name in names):
            return variant
    return ""


def title(kind: Kind, shapes: Shapes) -> str:
    """A network in words, such as "2B Video2World denoiser", from its tensors by the original's names."""
    if kind == "denoiser":
        return _denoiser_title(shapes)
    if kind in ("T5 encoder", "T5 decoder"):
        norm = shapes.get(f"{kind.removeprefix('T5 ')}.final_layer_norm.weight", ())
        width = f" of width {norm[0]}" if norm else ""
        return f"{kind}{width} and {_num_blocks(shapes)} layers"
    if kind == "VAE":
        first = shapes.get("encoder.conv1.weight") or shapes.get("encoder.conv_in.weight", ())
        return f"VAE of base width {first[0]}" if first else "VAE"
    widest = {
        "face detector": "body.conv1.weight",
        "vision tower": "post_layernorm.weight",
        "content classifier": "layers.0.bias",
    }
    first = shapes.get(widest.get(kind, ""), ())
    return f"{kind} of width {first[0]}" if first else kind


def _denoiser_title(shapes: Shapes) -> str:
    embedder = shapes.get("x_embedder.proj.1.weight", ())
    if len(embedder) != 2:
        return "denoiser"
    (width, inputs), num_blocks = embedder, _num_blocks(shapes)
    for spec, size, task in denoisers():
        if (spec.width, spec.patch_inputs, spec.num_blocks) == (width, inputs, num_blocks):
            return f"{size} {task} denoiser"
    return f"denoiser of width {width}, {num_blocks} blocks and {inputs} inputs a patch"


def denoisers() -> list[tuple[DitSpec, str, str]]:
    """Every denoiser of the presets, with its size and task in words."""
    tasks: tuple[tuple[Task, str], ...] = (
        ("text2image", "Text2Image"),
        ("video2world", "Video2World"),
    )
    return [
        (preset.dit(task), preset.model_size, words)
        for preset in PRESETS.values()
        for task, words in tasks
        if task in preset.tasks
    ]


def _num_blocks(shapes: Shapes) -> int:
    numbers = [re.match(r"(?:encoder\.|decoder\.)?blocks?\.(\d+)\.", name) for name in shapes]
    return len({match[1] for match in numbers if match})
