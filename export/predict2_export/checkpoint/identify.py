# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint is and which presets it fits, from its names and shapes: no weights are read."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from predict2_export.networks.content_filter import Classifier, VisionTower
from predict2_export.networks.dit import Dit
from predict2_export.networks.face_detector import FaceDetector
from predict2_export.networks.vae import Vae
from predict2_spec.networks import (
    ContentFilterSpec,
    DitSpec,
    FaceDetectorSpec,
    TextEncoderSpec,
    VaeSpec,
)
from predict2_spec.presets import PRESETS, Preset

from . import lora
from .files import container, find_files, read_checkpoint
from .fit import Misfits, likely_cause, misfits
from .kinds import Kind, kind_of, title, variant_of
from .names import (
    classifier_state_dict,
    dit_state_dict,
    face_detector_state_dict,
    text_encoder_state_dict,
    vae_state_dict,
    vision_tower_state_dict,
)
from .stored import StoredTensor
from .wording import some

State = Mapping[str, StoredTensor]
Spec = DitSpec | VaeSpec | TextEncoderSpec | FaceDetectorSpec | ContentFilterSpec


@dataclass(frozen=True)
class Identity:
    """What a checkpoint turned out to be."""

    title: str  # in words, such as "2B Video2World denoiser"; "" when it's unknown
    naming: str = ""  # whose names its tensors have
    notes: list[str] = field(default_factory=list)
    presets: list[str] = field(default_factory=list)  # that it fits
    nearest: str = ""  # the network it differs least from, when it fits none
    misfits: Misfits | None = None  # from that one
    reason: str = ""  # why it fits none, and what to do


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's outside, its tensors, and what they are."""

    path: str
    container: str
    num_files: int
    file_bytes: int
    tensors: State
    identity: Identity

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors once they're loaded."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of tensors by dtype."""
        return dict(Counter(dtype_name(tensor) for tensor in self.tensors.values()))


def dtype_name(tensor: StoredTensor) -> str:
    """The dtype in a word."""
    return str(tensor.dtype).removeprefix("torch.")


def inspect(path: Path) -> Inspection:
    """Look at a checkpoint without reading its weights.

    Raises:
        CheckpointError: it can't be read, or it's an adapter that plain merging doesn't cover.
    """
    state, files = read_checkpoint(path), find_files(path).files
    num_bytes = sum(file.stat().st_size for file in files)
    return Inspection(
        str(path), container(files[0]), len(files), num_bytes, state, _identify(path, state)
    )


def served_specs(kind: Kind) -> dict[Spec, list[str]]:
    """The networks of a kind that presets serve, each with the names of its presets."""
    found: dict[Spec, list[str]] = {}
    for preset in PRESETS.values():
        for spec in _specs(kind, preset):
            found.setdefault(spec, []).append(preset.name)
    return found


def _specs(kind: Kind, preset: Preset) -> Iterator[Spec]:
    if kind == "VAE":
        if isinstance(preset.vae, VaeSpec):  # of a scripted one nothing is known but its file
            yield preset.vae
    elif kind == "T5 encoder":
        yield preset.text_encoder
    elif kind == "face detector":
        yield preset.frame_guard.faces
    elif kind in ("vision tower", "content classifier"):
        yield preset.frame_guard.content
    elif kind == "denoiser":
        yield preset.text2image
        if preset.video2world:
            yield preset.video2world


@cache
def _wanted(kind: Kind, spec: Spec) -> Mapping[str, torch.Tensor]:
    """The network's weights on the meta device: names and shapes."""
    with torch.device("meta"):
        return _network(kind, spec).state_dict()


def _network(kind: Kind, spec: Spec) -> nn.Module:
    if isinstance(spec, DitSpec):
        return Dit(spec)
    if isinstance(spec, VaeSpec):
        return Vae(spec)
    if isinstance(spec, FaceDetectorSpec):
        return FaceDetector(spec)
    if isinstance(spec, ContentFilterSpec):
        return VisionTower(spec) if kind == "vision tower" else Classifier(spec)
    from predict2_export.networks.text_encoder import TextEncoder  # takes seconds to load

    return TextEncoder(spec)


def _own_names(kind: Kind, spec: Spec, state: State) -> State:
    """The weights under our names, as loading would take them."""
    if kind == "face detector":
        return face_detector_state_dict(state)
    if kind == "vision tower":
        return vision_tower_state_dict(state)
    if kind == "content classifier":
        return classifier_state_dict(state)
    if isinstance(spec, VaeSpec):
        return vae_state_dict(state, spec)
    if isinstance(spec, TextEncoderSpec):
        return text_encoder_state_dict(state)
    return lora.split_lora(dit_state_dict(state, ema=_only_ema(state)))[0]


def _only_ema(state: State) -> bool:
    return all(key.startswith("net_ema.") for key in state)


def _identify(path: Path, state: State) -> Identity:
    kind = kind_of(state)
    if kind == "LoRA adapter":
        return _identify_adapter(path)
    if kind in ("", "T5 decoder"):
        other = "the decoder of a T5" if kind else "no network of this product"
        return Identity("", reason=f"it is {variant_of(state) or other}; it holds {some(state)}")
    fitting: set[str] = set()
    compared = []
    for spec, presets in served_specs(kind).items():
        own = _own_names(kind, spec, state)
        compared.append((misfits(_wanted(kind, spec), own), spec, own))
        fitting.update([] if compared[-1][0] else presets)
    found, spec, own = min(compared, key=lambda one: len(one[0]))
    identity = Identity(
        title(kind, _shapes(own)),
        _naming(state),
        _notes(kind, path, state),
        [name for name in PRESETS if name in fitting],
    )
    if found:
        wanted = _wanted(kind, spec)
        return replace(
            identity,
            nearest=title(kind, _shapes(wanted)),
            misfits=found,
            reason=f"{'; '.join(found.problems)}; {likely_cause(wanted, own, found)}",
        )
    return _with_injected(identity, path, state, own) if kind == "denoiser" else identity


def _with_injected(identity: Identity, path: Path, state: State, own: State) -> Identity:
    """The identity of a file that may hold adapters beside the weights that they change."""
    _, adapters = lora.split_lora(dit_state_dict(state, ema=_only_ema(state)))
    if not adapters:
        return identity
    pairs = lora.lora_factors(adapters, str(path))
    problems = lora.misfits(own, pairs)
    return replace(
        identity,
        title=f"{identity.title} with {_describe(pairs)}",
        notes=[*identity.notes, "alpha isn't stored: the rank is taken, give what training had"],
        presets=[] if problems else identity.presets,
        reason="; ".join(problems),
    )


def _identify_adapter(path: Path) -> Identity:
    adapter = lora.read_adapter(path)
    pairs = lora.lora_factors(adapter.tensors, str(path))
    alpha = (
        "alpha isn't stored: the rank is taken, give what training had"
        if adapter.alpha is None
        else f"alpha {adapter.alpha:g}"
    )
    fitting: set[str] = set()
    reasons = []
    for spec, presets in served_specs("denoiser").items():
        if problems := lora.misfits(_wanted("denoiser", spec), pairs):
            reasons.append(f"{'; '.join(problems)}; it was trained on another network")
        else:
            fitting.update(presets)
    return Identity(
        _describe(pairs),
        _naming(adapter.tensors),
        [alpha],
        [name for name in PRESETS if name in fitting],
        reason="" if fitting else min(reasons, key=len),
    )


def _describe(pairs: Mapping[str, lora.Factors]) -> str:
    ranks = sorted({pair.rank for pair in pairs.values()})
    layers = sorted({key.split(".", 2)[-1].removesuffix(".weight") for key in pairs})
    return (
        f"LoRA of rank {', '.join(map(str, ranks))} for {len(pairs)} layers ({', '.join(layers)})"
    )


def _naming(state: State) -> str:
    keys = " ".join(state)
    if "transformer_blocks." in keys or "encoder.conv_in." in keys:
        return "diffusers"
    if "SelfAttention." in keys or "vision_model." in keys:
        return "transformers"
    return "original"


def _notes(kind: Kind, path: Path, state: State) -> list[str]:
    notes = []
    averaged = sum(key.startswith("net_ema.") for key in state)
    if averaged == len(state):
        notes.append("holds averaged weights only: load it with ema (build --load-ema)")
    elif averaged:
        notes.append(f"holds averaged weights beside the others: {averaged} tensors")
    if kind == "denoiser" and "natten" in path.name:
        notes.append("sparse by its file's name; dense ones hold the same tensors")
    if kind == "denoiser" and "distilled" in path.name:
        notes.append("distilled by its file's name; others hold the same tensors")
    unread = [tensor for key, tensor in state.items() if key.startswith(("decoder.", "lm_head."))]
    if kind == "T5 encoder" and unread:
        num_bytes = sum(tensor.nbytes for tensor in unread)
        notes.append(
            f"holds the decoder too: {len(unread)} tensors, {num_bytes / 1e9:.2f} GB that are never read"
        )
    return notes


def _shapes(state: State | Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
