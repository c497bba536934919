"""Outline of a repository of the model hub: its configuration, and its weights as empty files of their sizes.

So what a folder would be refused for can be said before anything of size is downloaded. Knows the hub. Knows no family.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import hf_hub_download, model_info
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from core.errors import BadModel
from engine.weights.files import PICKLED
from engine.weights.names import Repository

SMALL = ("config.json", "*.index.json")  # in any folder
WEIGHTS = ("*.safetensors", *PICKLED)


def outline(repository: Repository, folder: Path) -> bool:
    """Write the outline into an empty folder; False where the hub does not answer. Raises BadModel where it refuses."""
    name, revision = repository.name, repository.revision
    try:
        info = model_info(name, revision=revision, files_metadata=True)
        files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        for file in _matching(files, SMALL):
            hf_hub_download(name, file, revision=info.sha, local_dir=folder)
    except HFValidationError as error:
        raise BadModel(f"{name}: {error}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            source = name if revision is None else f"{name}@{revision}"
            raise BadModel(f"{source}: the model hub does not give it: {error}") from error
        return False
    for file in _matching(files, WEIGHTS):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("wb") as empty:
            empty.truncate(files[file])
    return True


def _matching(files: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The files whose names are like a pattern, and lead nowhere else."""
    paths = [PurePosixPath(file) for file in files]
    inside = [path for path in paths if ".." not in path.parts and not path.is_absolute()]
    return [str(path) for path in inside if any(path.match(pattern) for pattern in patterns)]
