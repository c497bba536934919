"""Name of a model to its folder: "embedded", a folder, or a repository of the model hub with an optional @revision.

A repository's folder is that of one commit; the name with that commit names the same weights for ever. Knows the hub's
cache. Knows nothing of what is in a folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RevisionNotFoundError

from core.errors import BadModel

PREFIX = "random:"
EMBEDDED = Path(__file__).resolve().parent.parent.parent / "checkpoints" / "embedded"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_FORM = "neither a folder nor a name of the form owner/model or owner/model@revision"
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class Repository:
    """A repository of the hub; revision: a commit, branch or tag, None where the name has none."""

    name: str
    revision: str | None

    @classmethod
    def of(cls, name: str) -> Repository | None:
        """Return the repository that a model's name names; None for another kind of name, and for a folder's."""
        matched = _REPOSITORY.fullmatch(name)
        if name.startswith(PREFIX) or matched is None or Path(name).expanduser().is_dir():
            return None
        return cls(matched["repository"], matched["revision"])


@dataclass(frozen=True)
class Located:
    """A model's folder, and the name that names it for every process: a repository's with its commit."""

    folder: Path
    name: str


def locate(name: str) -> Located:
    """Return where a model is; what a repository lacks here is downloaded. Raises BadModel."""
    if name.startswith(PREFIX):
        raise BadModel(f"{name}: random weights have no folder, and no judges beside them")
    if name == "embedded":
        if not EMBEDDED.is_dir():
            raise BadModel(f"the embedded model is missing: there is no folder {EMBEDDED}")
        return Located(EMBEDDED, name)
    folder = Path(os.path.expanduser(name))
    if folder.is_dir():
        return Located(folder, str(folder.resolve()))
    repository = Repository.of(name)
    if repository is None:
        raise BadModel(f"{name}: {_FORM}")
    try:
        folder = _snapshot(repository)
    except RevisionNotFoundError as error:
        raise BadModel(f"{name}: the model hub has no revision {repository.revision!r} of {repository.name}") from error
    except HFValidationError as error:
        raise BadModel(f"{name}: {_FORM}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BadModel(f"{name}: no such folder, and the model hub does not give it: {error}") from error
    return Located(folder, f"{repository.name}@{folder.name}")  # a snapshot's folder is called by its commit


def cached(repository: Repository) -> Path:
    """Return the folder of what was downloaded of a repository. Raises BadModel where nothing was."""
    try:
        return _snapshot(repository, local_files_only=True)
    except LocalEntryNotFoundError as error:
        raise BadModel(
            f"{repository.name}: not downloaded yet, or in part, and the model hub does not answer"
        ) from error


def is_cached(repository: Repository) -> bool:
    """Whether something of a repository was downloaded."""
    try:
        cached(repository)
    except BadModel:
        return False
    return True


def _snapshot(repository: Repository, local_files_only: bool = False) -> Path:
    return Path(
        snapshot_download(
            repository.name,
            revision=repository.revision,
            allow_patterns=HUB_FILES,
            local_files_only=local_files_only,
        )
    )
