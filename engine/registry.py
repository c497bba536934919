"""From a name to a model: the embedded checkpoint, a local folder, a repository of the model hub, or random weights.

A model that cannot be served is refused here with a reason, before the first request.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from codebook.store import CodebookStore
from core.errors import BadModel
from core.settings import Settings
from engine.family import Family, families, family_of, installed
from engine.runner.served import Served
from engine.unified.parts import Parts
from engine.unified.published import Published
from engine.unified.served_model import ServedModel
from engine.weights.files import check_folder, read_config, weight_files
from engine.weights.hashes import hash_weights
from engine.weights.memory import Footprint, footprint
from engine.weights.names import EMBEDDED, PREFIX, Repository, cached, is_cached, locate
from engine.weights.outline import add_headers, outline

__all__ = ["EMBEDDED", "PREFIX", "hash_weights"]

HASHES, PRODUCTS = "weights.json", "products.json"  # in SAFECB_HOME


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from passing, in vain, over all that the import of a family and a model make."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_paused()
def load_model(name: str, device: str, dtype: str, home: Path | None = None) -> Served:
    """Load "embedded", a folder, a hub repository such as "owner/model@main" or "random:emu3", ready to draw.

    home: the folder that remembers the hashes of weights and which products are fastest here, if any.
    device: "cpu", "cuda", "cuda:N" or "auto" (a GPU if there is one); dtype: "float32", "bfloat16", "float16" or
    "auto" (float32 on the CPU, bfloat16 on a GPU). Raises BadModel, before weights are downloaded or read where there
    is too little memory for them and an image.
    """
    hashes, products = (None, None) if home is None else (home / HASHES, home / PRODUCTS)
    return ServedModel(load_parts(name, device, dtype, hashes), products)


def load_parts(name: str, device: str, dtype: str, hashes: Path | None = None) -> Parts:
    """Load the parts of a model; arguments and errors as of load_model.

    hashes: the file that remembers the hashes of weights, if any.
    On the device "meta" random weights take no memory: for their sizes.
    """
    target, kind = _target(device, dtype)
    if name.startswith(PREFIX):
        return _random_family(name).load_random(name, target, kind)
    repository = Repository.of(name)
    if repository is not None and not is_cached(repository):
        _check_on_hub(name, repository, device, dtype)
    located = locate(name)
    folder, family = located.folder, find_family(located.folder)
    check_folder(folder, family.FOLDERS)
    _footprint(family, folder, target, kind).check(folder)
    model_hash = hash_weights(folder, family.FOLDERS, hashes)
    return family.load(located.name, folder, model_hash, target, kind)


def open_model(settings: Settings, patience: float = 0.0) -> Served:
    """Load the model of the settings: of a hub repository the commit that their store is for.

    The hashes of its weights and its fastest products are remembered in SAFECB_HOME. patience: as in
    CodebookStore.of. Raises BadModel, also for another revision than the store's, and as the store does.
    """
    name, repository = settings.model, Repository.of(settings.model)
    store = CodebookStore.of(settings, patience)
    identity = None if repository is None else store.place.identity()
    if repository is not None and identity is not None and identity.facts.get("model_id") == repository.name:
        name = _pinned(repository, identity.revision, store.place.name) or name
    return load_model(name, settings.device, settings.dtype, settings.home)


def _pinned(repository: Repository, recorded: str | None, store: str) -> str | None:
    """The name of a repository's commit that a store has recorded, if any. Raises BadModel where the name says another.

    So a branch that moves changes the weights of no process of a service.
    """
    if recorded is None:
        return None
    pinned = f"{repository.name}@{recorded}"
    if repository.revision not in (None, recorded):
        named = locate(f"{repository.name}@{repository.revision}").name
        if named != pinned:
            raise BadModel(
                f"{repository.name}@{repository.revision} is commit {named.rpartition('@')[2]}, and the store {store} "
                f"is for commit {recorded}: name that one in SAFECB_MODEL, or another folder in SAFECB_STORE"
            )
    return pinned


def load_published(name: str, device: str, dtype: str) -> Published | None:
    """Make a model in its publisher's own code, to compare with; arguments as load_model takes them.

    None where its family has no such code. Raises BadModel.
    """
    target = _target(device, dtype)
    if name.startswith(PREFIX):
        return _random_family(name).published(name, None, *target)
    folder = find_model(name)
    return find_family(folder).published(name, folder, *target)


def find_model(name: str) -> Path:
    """Return the folder of `name`; a hub repository is downloaded once. Raises BadModel."""
    return locate(name).folder


def check_model(name: str, device: str = "auto", dtype: str = "auto") -> str:
    """Say in a few words what would be loaded, and the memory that it takes, without loading it.

    Arguments as load_model takes them. Raises BadModel for what cannot be loaded.

    Of a repository of the hub its configuration and the names, sizes and headers of its files are checked; where the
    hub does not answer, what was downloaded.
    """
    if name.startswith(PREFIX):
        return "random weights"
    repository = Repository.of(name)
    if repository is None:
        return _described(name, find_model(name), device, dtype)
    on_hub = _check_on_hub(name, repository, device, dtype)
    return on_hub or f"{_described(name, cached(repository), device, dtype)}; downloaded"


def _check_on_hub(name: str, repository: Repository, device: str, dtype: str) -> str | None:
    """Say what would be downloaded and loaded; None where the hub does not answer. Raises BadModel."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        if (pinned := outline(repository, folder)) is None:
            return None
        try:
            family = find_family(folder)
            check_folder(folder, family.FOLDERS, whole=False)
            files = weight_files(folder, family.FOLDERS)
            add_headers(pinned, folder, files)
            size = sum(file.stat().st_size for file in files) / 2**20
            return f"{_described(name, folder, device, dtype)}; {size:,.0f} MiB on the model hub"
        except BadModel as error:
            raise BadModel(str(error).replace(place, name)) from error


def _described(name: str, folder: Path, device: str, dtype: str) -> str:
    family = find_family(folder)
    check_folder(folder, family.FOLDERS)
    return f"{name}, {family.NAME}: {_footprint(family, folder, *_target(device, dtype)).check(folder)}"


def _footprint(family: Family, folder: Path, device: torch.device, dtype: torch.dtype) -> Footprint:
    return footprint(folder, family.FOLDERS, family.kv_numbers(folder), device, dtype)


def has_beside(name: str, folder: str) -> bool:
    """Whether there is a folder of this name beside the weights of model `name`."""
    try:
        return (find_model(name) / folder).is_dir()
    except BadModel:  # random weights have no folder
        return False


def find_family(folder: Path) -> Family:
    """Return the family of a folder. Raises BadModel where there is none, naming those that are served."""
    config = read_config(folder)
    try:
        return family_of(config)
    except BadModel as error:
        raise BadModel(f"{folder}: {error}") from error


def licence(family: str) -> str:
    """Return the licence of a family's published weights, for whoever starts a server; "" for an unknown one."""
    return next((each.LICENCE for each in families() if family == each.NAME), "")


def _random_family(name: str) -> Family:
    """The family of a random model. Raises BadModel, naming all geometries."""
    for family in families():
        if name.removeprefix(PREFIX) in family.GEOMETRIES:
            return family
    geometries = [PREFIX + geometry for family in families() for geometry in family.GEOMETRIES]
    raise BadModel(f"{name}: there are {', '.join(geometries)}{installed().but}")


def _target(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that load_model's arguments mean. Raises BadModel."""
    target = _device(device)
    auto = torch.float32 if target.type == "cpu" else torch.bfloat16
    return target, auto if dtype == "auto" else getattr(torch, dtype)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadModel(f"device {name!r} asked for, but this machine has {torch.cuda.device_count()} GPUs")
    return device
