# SPDX-License-Identifier: Apache-2.0
"""LoRA: a trained low-rank change, W + alpha/rank * B A, added to the weights as they are read."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from predict2_spec.errors import CheckpointError

from .adapter_config import config_alpha, saved_config
from .files import find_files, read_checkpoint
from .names import dit_name
from .stored import StoredTensor
from .wording import short, some

V = TypeVar("V")
State = dict[str, StoredTensor]

CONFIG_FILE = "adapter_config.json"
_CONFIG_IN_SAFETENSORS = "lora_adapter_metadata"  # where diffusers keeps the configuration
_FACTOR = re.compile(
    r"(?:(?:base_model|model|transformer|diffusion_model|net|net_ema)\.)*"
    r"(?P<target>.+)\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
)
_NUM_ROWS = 1024  # of a weight that are merged at a time, so that the fp32 copy stays small


@dataclass(frozen=True)
class Adapter:
    """A LoRA file."""

    tensors: State  # under their stored names
    alpha: float | None  # as `merge_lora` takes it; None where nothing beside the weights says it


@dataclass(frozen=True)
class Factors:
    """The change of one weight [out, in]: `up` [out, rank] times `down` [rank, in]."""

    down: StoredTensor
    up: StoredTensor

    @property
    def rank(self) -> int:
        """Columns of `up` and rows of `down`."""
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight it changes."""
        return self.up.shape[0], self.down.shape[1]


def read_adapter(path: Path) -> Adapter:
    """Find an adapter's tensors, and its alpha in the configuration beside or in the file.

    Args:
        path: a file, or a folder as PEFT's save_pretrained makes it.

    Raises:
        CheckpointError: the file can't be read, or its configuration asks for more than W + s B A.
    """
    state, (file, *_) = read_checkpoint(path), find_files(path).files
    config = _config(file)
    if config is None:
        return Adapter(state, None)
    alpha = config_alpha(config, str(path))
    if ranks := {pair.rank for pair in lora_factors(state, str(path)).values()} - {config["r"]}:
        raise CheckpointError(
            f"{path} has weights of rank {some(sorted(ranks))} and a configuration of rank {config['r']}; "
            "they are of two adapters: download both again"
        )
    return Adapter(state, alpha)


def _config(file: Path) -> Mapping[str, Any] | None:
    beside = file.parent / CONFIG_FILE
    try:
        if beside.is_file():
            return saved_config(json.loads(beside.read_text()))
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as header:
                text = (header.metadata() or {}).get(_CONFIG_IN_SAFETENSORS)
            return None if text is None else saved_config(json.loads(text))
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the LoRA configuration of {file} can't be read ({short(error)}); download it again"
        ) from error
    return None


def split_lora(state: Mapping[str, V]) -> tuple[dict[str, V], dict[str, V]]:
    """A post-trained state with adapters injected -> what it was without them, and the adapters."""
    base = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
    return base, {key: value for key, value in state.items() if ".lora_" in key}


def merge_injected(state: Mapping[str, StoredTensor], alpha: float | None, source: str) -> State:
    """A denoiser's state with the adapters that it holds merged; one without is as it was.

    Args:
        state: as `dit_state_dict` gives it, with PEFT's `base_layer` and `lora_` names or without.
        alpha: what training was given; None is the rank.
        source: what the message of an error calls the file.

    Raises:
        CheckpointError: the adapters don't fit the weights beside them.
    """
    base, adapter = split_lora(state)
    return merge_lora(base, adapter, alpha, source) if adapter else base


def merge_lora(
    base: Mapping[str, StoredTensor],
    adapter: Mapping[str, StoredTensor],
    alpha: float | None,
    source: str,
) -> State:
    """A denoiser's weights with an adapter added; nothing is read before they are.

    A weight becomes W + alpha/rank * B A, formed in fp32 and rounded once to the dtype of W. Where
    the change is zero W stays bit for bit.

    Args:
        base: weights under the original's names without prefix.
        adapter: `*.lora_A.weight` [rank, in] and `*.lora_B.weight` [out, rank] by PEFT's, the
            original's or diffusers' names.
        alpha: what training was given; None is the rank, so B A is added as it is.
        source: what the message of an error calls the adapter.

    Raises:
        CheckpointError: there are no such pairs, tensors of another kind, or pairs that fit no
            weight of `base`.
    """
    pairs = lora_factors(adapter, source)
    if alpha is not None and not math.isfinite(alpha):
        raise CheckpointError(f"alpha {alpha} of {source} is no number; give what training had")
    if problems := misfits(base, pairs):
        raise CheckpointError(
            f"{source} doesn't fit the checkpoint: {'; '.join(problems)}; "
            "use the base that it was trained on: the same size and task"
        )
    return {
        key: _changed(value, pairs[key], alpha) if key in pairs else value
        for key, value in base.items()
    }


def misfits(
    base: Mapping[str, StoredTensor] | Mapping[str, Tensor], pairs: Mapping[str, Factors]
) -> list[str]:
    """What keeps pairs from being added to weights; nothing when they can be."""
    unknown = [key for key in pairs if key not in base]
    wrong = [
        f"{key} is {list(base[key].shape)} and the change {list(pair.shape)}"
        for key, pair in pairs.items()
        if key in base and tuple(base[key].shape) != pair.shape
    ]
    kinds = {"that the checkpoint lacks": unknown, "of another shape": wrong}
    return [
        f"{len(keys)} of {len(pairs)} targets {kind} ({some(keys)})"
        for kind, keys in kinds.items()
        if keys
    ]


def lora_factors(adapter: Mapping[str, StoredTensor], source: str) -> dict[str, Factors]:
    """An adapter's pairs by the name of the weight that each changes.

    Raises:
        CheckpointError: there are none, a half of one is missing, or there is something else.
    """
    found: dict[str, dict[str, StoredTensor]] = {}
    adapters, other = set(), []
    for key, tensor in adapter.items():
        if match := _FACTOR.fullmatch(key):
            adapters.add(match["adapter"] or "default")
            pair = found.setdefault(dit_name(f"{match['target']}.weight"), {})
            other += [key] if match["factor"] in pair else []
            pair[match["factor"]] = tensor
        else:
            other.append(key)
    if not found:
        raise CheckpointError(
            f"{source} holds no LoRA weights (*.lora_A.weight), only {some(adapter) or 'nothing'}; "
            "name an adapter file"
        )
    if other:
        raise CheckpointError(
            f"{source} holds {len(other)} tensors that aren't plain LoRA ({some(other)}), such as "
            "DoRA's, scales of single layers or whole layers; merge it with the tool that trained it"
        )
    if len(adapters) > 1:
        raise CheckpointError(
            f"{source} holds several adapters ({some(sorted(adapters))}); save one by itself"
        )
    return dict(_checked(found, source))


def _checked(
    found: Mapping[str, Mapping[str, StoredTensor]], source: str
) -> Iterator[tuple[str, Factors]]:
    for key, pair in found.items():
        if len(pair) < 2:
            (there,) = pair
            raise CheckpointError(
                f"{source} has lora_{there} for {key} and no lora_{'BA'['AB'.index(there)]}; "
                "download it again"
            )
        factors = Factors(pair["A"], pair["B"])
        down, up = factors.down, factors.up
        if not (len(down.shape) == len(up.shape) == 2 and down.shape[0] == up.shape[1] > 0):
            raise CheckpointError(
                f"{source} has lora_A {list(down.shape)} and lora_B {list(up.shape)} for {key}, "
                "which share no rank; download it again"
            )
        if not (down.dtype.is_floating_point and up.dtype.is_floating_point):
            raise CheckpointError(
                f"{source} has lora_A as {down.dtype} and lora_B as {up.dtype} for {key}; use one in bf16 or fp32"
            )
        yield key, factors


def _changed(base: StoredTensor, factors: Factors, alpha: float | None) -> StoredTensor:
    scale = 1.0 if alpha is None else alpha / factors.rank
    return StoredTensor(base.shape, base.dtype, partial(_merge, base, factors, scale))


@torch.no_grad()
def _merge(base: StoredTensor, factors: Factors, scale: float) -> Tensor:
    weight = base.load()
    down, up = factors.down.load().float(), factors.up.load().float()
    merged = torch.empty(weight.shape, dtype=weight.dtype)
    for start in range(0, len(weight), _NUM_ROWS):
        rows = slice(start, start + _NUM_ROWS)
        delta = scale * (up[rows] @ down)
        changed = (weight[rows].float() + delta).to(weight.dtype)
        # -0.0 + 0.0 is 0.0: without the choice an adapter of zeros would change signs.
        merged[rows] = torch.where(delta == 0, weight[rows], changed)
    return merged
