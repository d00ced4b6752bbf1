# SPDX-License-Identifier: Apache-2.0
"""PEFT's configuration of an adapter: the scale it gives, and a refusal of what isn't W + s B A."""

from collections.abc import Mapping
from typing import Any

from predict2_spec.errors import CheckpointError

# Settings that say where an adapter came from, what it was trained on and how it began: the
# weights beside them already show it. Any other one that is set changes the sum in some way.
_HARMLESS = frozenset(
    {
        "r", "lora_alpha", "use_rslora", "init_lora_weights", "bias",
        "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying",
        "eva_config", "exclude_modules", "inference_mode", "layers_pattern",
        "layers_to_transform", "lora_dropout", "lora_ga_config", "megatron_core", "peft_type",
        "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
        "task_type",
    }
)  # fmt: skip
# Ways to begin that change the base weights too, so the adapter counts from others than the file's.
_CHANGES_BASE = ("corda", "loftq", "lora_ga", "olora", "pissa")


def saved_config(values: Any) -> Mapping[str, Any]:
    """The settings in a JSON file or diffusers' metadata, where they begin with a network's name.

    Raises:
        ValueError: they are something else.
    """
    if not isinstance(values, dict):
        raise ValueError("no table of settings")
    prefix = "transformer."
    if any(key.startswith(prefix) for key in values):
        return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    return values


def config_alpha(config: Mapping[str, Any], source: str) -> float:
    """The alpha of W + alpha/rank * B A that a configuration means.

    Raises:
        CheckpointError: it means another sum, or says no alpha.
    """
    kind, start = config.get("peft_type", "LORA"), config.get("init_lora_weights", True)
    if kind != "LORA":
        raise _refusal(source, f"peft_type {kind!r:.40}")
    if config.get("bias", "none") != "none":
        raise _refusal(source, f"bias {config['bias']!r:.40}")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _refusal(source, f"init_lora_weights {start!r:.40}")
    for name, value in config.items():
        if name not in _HARMLESS and value:
            raise _refusal(source, f"{name} {value!r:.60}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank <= 0 or not isinstance(alpha, int | float):
        raise CheckpointError(
            f"the LoRA configuration of {source} has r {rank!r:.40} and lora_alpha {alpha!r:.40}; "
            "both have to be numbers"
        )
    # Rank-stabilised adapters are scaled by alpha / sqrt(r).
    return alpha * rank**0.5 if config.get("use_rslora") else float(alpha)


def _refusal(source: str, setting: str) -> CheckpointError:
    return CheckpointError(
        f"{source} was trained with {setting}, which plain merging (W + alpha/r * B A) doesn't cover; "
        "merge it with PEFT and give the merged checkpoint"
    )
