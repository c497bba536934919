"""Outline of a repository of the model hub: its configuration, and its weights as files of their sizes without weights.

So what a folder would be refused for, and the memory that it takes, can be said before anything of size is downloaded.
Knows the hub. Knows no family.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import hf_hub_download, model_info, parse_safetensors_file_metadata
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)

from core.errors import BadModel
from engine.weights.files import PICKLED
from engine.weights.names import Repository

SMALL = ("config.json", "safecb.json", "*.index.json")  # in any folder
WEIGHTS = ("*.safetensors", *PICKLED)


def outline(repository: Repository, folder: Path) -> Repository | None:
    """Write the outline into an empty folder, files of weights without headers; return the repository at its commit.

    None where the hub does not answer. Raises BadModel where it refuses.
    """
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
            raise BadModel(f"{source}: no such folder, and the model hub does not give it: {error}") from error
        return None
    for file in _matching(files, WEIGHTS):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with (folder / file).open("wb") as empty:
            empty.truncate(files[file])
    return Repository(name, info.sha)


def add_headers(repository: Repository, folder: Path, files: Iterable[Path]) -> None:
    """Write the headers of safetensors files into an outline, a request or two each. Raises BadModel.

    What the hub has under the name of one and is none stays without a header, as which it is refused.
    """
    for file in files:
        place = file.relative_to(folder).as_posix()
        try:
            read = parse_safetensors_file_metadata(repository.name, place, revision=repository.revision)
        except (NotASafetensorsRepoError, SafetensorsParsingError):
            continue
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            raise BadModel(f"{repository.name}: the model hub does not give the header of {place}: {error}") from error
        tensors = {
            name: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
            for name, tensor in read.tensors.items()
        }
        header = json.dumps(tensors, ensure_ascii=False, separators=(",", ":")).encode()
        with file.open("r+b") as opened:
            opened.write(len(header).to_bytes(8, "little") + header)


def _matching(files: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """The files whose names are like a pattern, and lead nowhere else."""
    paths = [PurePosixPath(file) for file in files]
    inside = [path for path in paths if ".." not in path.parts and not path.is_absolute()]
    return [str(path) for path in inside if any(path.match(pattern) for pattern in patterns)]
