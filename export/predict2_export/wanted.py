# SPDX-License-Identifier: Apache-2.0
"""Which published files a preset needs: from its paths to patterns, and from a hub's listing to files."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any, Literal

from predict2_spec.errors import CheckpointError
from predict2_spec.presets import Preset, Task

from .checksums import GIT_SHA1
from .layouts import candidates
from .released import EXTRAS, REPOS, KnownFile, Repo, Want

Layout = Literal["original", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("original", "diffusers")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it at the pinned revision."""

    repo: Repo
    name: str  # in the repository
    size_bytes: int
    sha256: str = ""  # of files in the hub's large-file storage
    git_sha1: str = ""  # of the others

    @property
    def path(self) -> str:
        """Where it lies below the checkpoint folder."""
        return f"{self.repo.name}/{self.name}"

    @property
    def known(self) -> KnownFile:
        """What is known of it without asking the hub."""
        return self.repo.known.get(self.name, KnownFile())

    @property
    def hub_digests(self) -> dict[str, str]:
        """What the hub says that its content hashes to."""
        digest = {"sha256": self.sha256} if self.sha256 else {GIT_SHA1: self.git_sha1}
        return {kind: value for kind, value in digest.items() if value}

    @property
    def known_digests(self) -> dict[str, str]:
        """What its content hashes to by the tables of this package."""
        known = {"md5": self.known.md5, "sha256": self.known.sha256}
        return {kind: value for kind, value in known.items() if value}


def wanted(
    preset: Preset,
    tasks: Sequence[Task] = (),
    layout: Layout = "original",
    extras: Iterable[str] = (),
) -> list[Want]:
    """The files that `preset` needs, a row a repository.

    Args:
        preset: what shall be served.
        tasks: only these of the preset's tasks; empty: all of them.
        layout: NVIDIA's own files, or the same networks as diffusers stores them.
        extras: names of EXTRAS.

    Raises:
        CheckpointError: the preset or that layout of it isn't published.
        InvalidRequestError: the preset doesn't serve one of the tasks.
    """
    if layout == "diffusers":
        preset = diffusers_paths(preset)
    patterns: dict[str, dict[str, None]] = {}
    for path in _paths(preset, tasks):
        repo, inside = _split(path)
        patterns.setdefault(repo.name, {}).update(dict.fromkeys(_patterns(repo, inside)))
    return [
        *(Want(REPOS[name], tuple(found)) for name, found in patterns.items()),
        *(want for extra in dict.fromkeys(extras) for want in EXTRAS[extra]),
    ]


def diffusers_paths(preset: Preset) -> Preset:
    """The preset with the paths of diffusers' layout; a denoiser that isn't published so keeps its own.

    Raises:
        CheckpointError: nothing of the preset is published in that layout.
    """
    if not preset.video2world:
        raise CheckpointError(
            f"preset {preset.name} is not published in diffusers' layout, those of 2B and 14B are; leave --layout out"
        )
    paths: dict[str, Any] = {
        field: (others or [own])[0] for field, (own, *others) in candidates(preset).items()
    }
    return replace(preset, **paths)


def known_size(preset: Preset, layout: Layout = "original") -> tuple[int, bool]:
    """(bytes of the preset's weights that are known without a hub, whether those are all of them)."""
    if layout == "diffusers":
        preset = diffusers_paths(preset)
    sizes = [_known_size(path) for path in _paths(preset, ()) if path != preset.tokenizer_path]
    return sum(sizes), all(sizes)


def _known_size(path: str) -> int:
    repo, inside = _split(path)
    known = repo.known.get(inside, KnownFile())
    return known.size_bytes or sum(
        repo.known[name].size_bytes for name in repo.root_files if not inside and name in repo.known
    )


def is_published(preset: Preset) -> bool:
    """Whether a preset's weights come from a hub at all; the toy's come with this package."""
    return "/".join(PurePosixPath(preset.text2image_path).parts[:2]) in REPOS


def _paths(preset: Preset, tasks: Sequence[Task]) -> list[str]:
    for task in tasks:
        preset.dit(task)  # refuses a task that the preset doesn't serve
    asked = tasks or preset.tasks
    paths = [preset.text_encoder_path, preset.tokenizer_path, preset.vae_path]
    if {"text2image", "text2world"} & set(asked):
        paths.append(preset.text2image_path)
    if {"video2world", "text2world"} & set(asked):
        paths.append(preset.video2world_path)
    return paths


def _split(path: str) -> tuple[Repo, str]:
    """(repository, path inside it) of a path below the checkpoint folder."""
    parts = PurePosixPath(path).parts
    name = "/".join(parts[:2])
    if name not in REPOS:
        raise CheckpointError(
            f"{path} belongs to no published repository; those are {', '.join(REPOS)}"
        )
    return REPOS[name], "/".join(parts[2:])


def _patterns(repo: Repo, inside: str) -> tuple[str, ...]:
    if not inside:
        return repo.root_files
    if PurePosixPath(inside).suffix:
        return (inside,)
    return (f"{inside}/*.safetensors", f"{inside}/*.json")


def select(want: Want, listing: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The wanted ones of a repository's files, by name.

    Raises:
        CheckpointError: a name would land outside its folder, or a file can't be checked.
    """
    chosen = [
        file
        for file in sorted(listing, key=lambda file: file.name)
        if _matches(file.name, want.include) and not _matches(file.name, want.exclude)
    ]
    for file in chosen:
        _check_listed(file)
    return chosen


def missing(want: Want, chosen: Iterable[RemoteFile]) -> list[str]:
    """A line for each wanted file, or kind of file, that isn't among the chosen ones."""
    names = [file.name for file in chosen]
    return [
        f"{want.repo.name} has no {pattern} at revision {want.repo.revision}; "
        f"see what it holds at {want.repo.page}/tree/{want.repo.revision}"
        for pattern in want.include
        if not any(fnmatchcase(name, pattern) for name in names)
    ]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_listed(file: RemoteFile) -> None:
    """Names and digests become parts of paths, so a hub must not choose them freely."""
    if not _DIGEST.fullmatch(file.sha256 or file.git_sha1):
        raise CheckpointError(
            f"the hub lists {file.path!r:.200} without a digest to check it by; check what HF_ENDPOINT names"
        )
    parts = file.name.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or not file.name.isprintable()
    if odd or "\\" in file.name:
        raise CheckpointError(
            f"the hub lists {file.name!r:.100} in {file.repo.name}, which could land outside its folder; "
            "nothing of that repository is fetched; check what HF_ENDPOINT names"
        )
