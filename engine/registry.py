"""From a name to a model: the embedded checkpoint, a local folder, a repository of the model hub, or random weights.

A model that cannot be served is refused here with a reason, before the first request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from core.errors import BadModel
from engine.runner.served import Served
from engine.unified.parts import Parts
from engine.unified.served_model import ServedModel
from engine.weights.files import check_folder, read_config, weight_files

EMBEDDED = Path(__file__).resolve().parent.parent / "checkpoints" / "embedded"
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]

GROUP = "safecb.families"  # of entry points: a module that is a Family each
PREFIX = "random:"


class Family(Protocol):
    """The module of a family; a package of its own may bring one."""

    NAME: str
    LICENCE: str  # of the published weights
    FOLDERS: Sequence[str]  # beside the weights, with further ones
    GEOMETRIES: Collection[str]  # of its random models, without PREFIX

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this family. Raises BadModel for a layout of it that is not read."""

    def load(self, name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
        """Make the parts of the model called `name` from its folder. Raises BadModel."""

    def load_random(self, name: str, device: torch.device, dtype: torch.dtype) -> Parts:
        """Make parts with random weights, as "random:GEOMETRY". Raises BadModel."""


@cache
def families() -> tuple[Family, ...]:
    """Return the families that installed packages bring, by name. Raises BadModel for one that cannot be imported."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return tuple(_imported(point) for point in points)


def load_model(name: str, device: str, dtype: str) -> Served:
    """Load "embedded", a folder, a hub repository such as "owner/model" or "random:janus-pro-1b", ready to draw.

    device: "cpu", "cuda", "cuda:N" or "auto" (a GPU if there is one); dtype: "float32", "bfloat16", "float16" or
    "auto" (float32 on the CPU, bfloat16 on a GPU). Raises BadModel.
    """
    target = _device(device)
    auto = torch.float32 if target.type == "cpu" else torch.bfloat16
    kind: torch.dtype = auto if dtype == "auto" else getattr(torch, dtype)
    if name.startswith(PREFIX):
        return ServedModel(_random_family(name).load_random(name, target, kind))
    folder = find_model(name)
    family = find_family(folder)
    check_folder(folder, family.FOLDERS)
    own = str(folder.resolve()) if name != "embedded" and Path(name).is_dir() else name
    return ServedModel(family.load(own, folder, hash_weights(folder, family.FOLDERS), target, kind))


def find_model(name: str) -> Path:
    """Return the folder of `name`; a hub repository is downloaded once. Raises BadModel."""
    if name.startswith(PREFIX):
        raise BadModel(f"{name}: random weights have no folder, and no judges beside them")
    if name == "embedded":
        if not EMBEDDED.is_dir():
            raise BadModel(f"the embedded model is missing: there is no folder {EMBEDDED}")
        return EMBEDDED
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except HFValidationError as error:
        raise BadModel(f"{name}: neither a folder nor a name of the form owner/model") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BadModel(f"{name}: no such folder, and the model hub does not give it: {error}") from error


def check_model(name: str) -> str:
    """Say in a few words what would be loaded, without loading it. Raises BadModel for a folder that cannot be."""
    if name.startswith(PREFIX):
        return "random weights"
    if name != "embedded" and not Path(name).is_dir():
        return f"{name}, from the model hub"
    folder = find_model(name)
    family = find_family(folder)
    check_folder(folder, family.FOLDERS)
    size = sum(file.stat().st_size for file in weight_files(folder, family.FOLDERS)) / 2**20
    return f"{name}, {family.NAME}, {size:.0f} MiB of weights"


def has_beside(name: str, folder: str) -> bool:
    """Whether there is a folder of this name beside the weights of model `name`."""
    try:
        return (find_model(name) / folder).is_dir()
    except BadModel:  # random weights have no folder
        return False


def hash_weights(folder: Path, more: Sequence[str] = ()) -> str:
    """Sha256 over the folder's safetensors files, in the order of their names, then of those in the folders `more`.

    Raises BadModel if there are none.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder, more):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def find_family(folder: Path) -> Family:
    """Return the family of a folder. Raises BadModel where there is none, naming those that are served."""
    config = read_config(folder)
    try:
        fitting = [family for family in families() if family.fits(config)]
    except BadModel as error:
        raise BadModel(f"{folder}: {error}") from error
    if not fitting:
        served = ", ".join(repr(family.NAME) for family in families())
        raise BadModel(f"{folder}: is a {config['model_type']!r} model; the families served are: {served}")
    return fitting[0]


def licence(family: str) -> str:
    """Return the licence of a family's published weights, for whoever starts a server; "" for an unknown one."""
    return next((each.LICENCE for each in families() if family == each.NAME), "")


def _random_family(name: str) -> Family:
    """The family of a random model. Raises BadModel, naming all geometries."""
    for family in families():
        if name.removeprefix(PREFIX) in family.GEOMETRIES:
            return family
    geometries = [PREFIX + geometry for family in families() for geometry in family.GEOMETRIES]
    raise BadModel(f"{name}: there are {', '.join(geometries)}")


def _imported(point: EntryPoint) -> Family:
    try:
        family: Family = point.load()
    except Exception as error:  # whatever a package does
        raise BadModel(f"the family {point.name!r} of {point.value} cannot be imported: {error}") from error
    return family


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadModel(f"device {name!r} asked for, but this machine has {torch.cuda.device_count()} GPUs")
    return device
