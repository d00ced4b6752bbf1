# SPDX-License-Identifier: Apache-2.0
"""A model hub: what a repository holds at a revision, and the bytes of its files."""

from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import quote

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RevisionNotFoundError,
)

# Of httpx or of httpx2: the hub's client went from one to the other.
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

from predict2_spec.errors import CheckpointError

from .fetch import RefusedError
from .released import Repo
from .wanted import RemoteFile

_LISTING_TIMEOUT_S = 30
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


class UnreachableError(CheckpointError):
    """No hub answers."""


@dataclass(frozen=True)
class Hub:
    """A hub and who asks it."""

    endpoint: str  # such as https://huggingface.co
    token: str | None = field(default=None, repr=False)

    def files(self, repo: Repo) -> list[RemoteFile]:
        """Every file of a repository at its pinned revision.

        Raises:
            RefusedError: the hub doesn't have it or doesn't give it.
            UnreachableError: no hub answers.
        """
        try:
            info = HfApi(self.endpoint, token=self.token or False).model_info(
                repo.name, revision=repo.revision, files_metadata=True, timeout=_LISTING_TIMEOUT_S
            )
        except (TransportError, OSError) as error:
            raise self._translated(error, repo, f"the files of {repo.name}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UnreachableError(
                f"{self.endpoint} doesn't answer as a hub does ({error!r:.100}); check HF_ENDPOINT"
            ) from error
        return [_remote_file(repo, sibling) for sibling in info.siblings or ()]

    def download(self, file: RemoteFile, stream: BinaryIO) -> None:
        """Append to `stream` what it doesn't hold yet of a file.

        Raises:
            CheckpointError: the hub refuses or breaks off; what has arrived stays in the stream.
            OSError: the disk is full.
        """
        # Not hf_hub_download: it starts over after an interruption. And each request goes to the hub, which sends
        # it on to a store: addresses there expire, and a retry after hours needs a new one. The client leaves the
        # token out when it is sent on to another host.
        url = f"{self.endpoint}/{file.repo.name}/resolve/{file.repo.revision}/{quote(file.name)}"
        headers = build_hf_headers(token=self.token or False)
        headers["Accept-Encoding"] = "identity"  # parts of compressed answers can't be put together
        try:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=headers,
                expected_size=file.size_bytes,
                displayed_filename=file.name,
            )
        except TransportError as error:
            raise self._translated(error, file.repo, file.path) from error
        except OSError as error:
            if error.errno is not None:  # the disk's
                raise
            raise CheckpointError(
                f"{file.path}: {self.endpoint} sent another number of bytes than it lists; run the command again"
            ) from error

    def _translated(self, error: Exception, repo: Repo, what: str) -> CheckpointError:
        if not isinstance(error, HfHubHTTPError):
            return UnreachableError(
                f"{what}: {self.endpoint} can't be reached ({error}); check the network, HTTPS_PROXY and HF_ENDPOINT, "
                "then run the command again, it goes on where it stopped"
            )
        status = error.response.status_code
        text = f"{what}: {self.endpoint} answers {status}"
        if isinstance(error, EntryNotFoundError):
            return CheckpointError(
                f"{text}, no such file at revision {repo.revision}; see {repo.page}"
            )
        if isinstance(error, RevisionNotFoundError):
            return RefusedError(
                f"{text}, no revision {repo.revision}; if HF_ENDPOINT names a mirror, try without it"
            )
        if status in (401, 403):
            return RefusedError(f"{text}; {self._way_in(error, repo)}")
        if status == 404:
            return RefusedError(
                f"{text}, no repository {repo.name}; if HF_ENDPOINT names a mirror, try without it"
            )
        if status == 429:
            return RefusedError(
                f"{text}, too many requests; wait {_wait(error)}, then run the command again; with HF_TOKEN set the limit is higher"
            )
        return CheckpointError(f"{text}; run the command again later, it goes on where it stopped")

    def _way_in(self, error: HfHubHTTPError, repo: Repo) -> str:
        if repo.gated or isinstance(error, GatedRepoError):
            return f"accept the licence at {repo.page} and set HF_TOKEN to a token that may read it ({TOKENS_PAGE})"
        if self.token:
            return f"it doesn't accept HF_TOKEN or the token of your login; make another at {TOKENS_PAGE}"
        return f"look at {repo.page}, and set HF_TOKEN to a token that may read it ({TOKENS_PAGE})"


def _remote_file(repo: Repo, sibling: RepoSibling) -> RemoteFile:
    if sibling.size is None:
        raise RefusedError(
            f"the hub lists {repo.name} without sizes; if HF_ENDPOINT names a mirror, try without it"
        )
    if sibling.lfs:
        return RemoteFile(repo, sibling.rfilename, sibling.size, sha256=sibling.lfs.sha256)
    return RemoteFile(repo, sibling.rfilename, sibling.size, git_sha1=sibling.blob_id or "")


def _wait(error: HfHubHTTPError) -> str:
    seconds = error.response.headers.get("Retry-After", "")
    return f"{seconds} s" if seconds.isdigit() else "some minutes"
