# SPDX-License-Identifier: Apache-2.0
"""A served model repository: Triton's folders plus one file that says which preset they hold."""

import json
from collections.abc import Mapping
from pathlib import Path

from predict2_spec.errors import EngineMismatchError
from predict2_spec.presets import Preset, find_preset

REPOSITORY_FILE = "repository.json"
VERSION_FOLDER = "1"  # every model has this one version


def version_folder(args: Mapping[str, str]) -> Path:
    """The folder of a model's version, from the arguments Triton gives `initialize`."""
    return Path(args["model_repository"]) / args["model_version"]


def served_repository(args: Mapping[str, str]) -> Path:
    """The repository a model is served from, from the arguments Triton gives `initialize`."""
    return Path(args["model_repository"]).parent


def read_preset(repository: Path) -> Preset:
    """The preset a served repository holds.

    Raises:
        EngineMismatchError: the folder holds no repository that predict2-export made.
    """
    path = repository / REPOSITORY_FILE
    try:
        return find_preset(json.loads(path.read_text())["preset"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineMismatchError(
            f"{repository} is no repository made by predict2-export ({error}); "
            "make one with `predict2-export build`"
        ) from error


def write_preset(repository: Path, preset: Preset) -> None:
    """Note in a repository which preset it holds."""
    part = repository / f".{REPOSITORY_FILE}.part"
    part.write_text(json.dumps({"preset": preset.name}) + "\n")
    part.rename(repository / REPOSITORY_FILE)  # a full disk leaves the old one
