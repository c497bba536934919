"""Identity of the model that a store belongs to; every version in the store must match it.

Knows names and sizes, and their file. Knows no tensor values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codebook.value import Codebook
from core.atomic import read_file, replace_file
from core.errors import BadCodebook, BadInput, NotFound
from core.json_records import decode, encode


@dataclass(frozen=True)
class Identity:
    """One store, one model.

    codes, code_dim: the pixel table is [K, D]. feature_dim: M of a head edit and its halfway probe, hidden_dim: H of
    its router; None if the facts lack them.
    revision: the commit of a model of the hub, which every process of the service takes.
    facts: further facts of the engine about the model, JSON; for people, not checked.
    """

    family: str
    model_hash: str
    codes: int
    code_dim: int
    feature_dim: int | None
    hidden_dim: int | None
    facts: dict[str, Any]
    revision: str | None = None

    @classmethod
    def of(cls, base: Codebook, facts: Mapping[str, Any]) -> Identity:
        """Return the identity of the model whose own codebook is `base`.

        `facts` may have feature_dim, hidden_dim and revision.
        Raises BadCodebook (shape) unless the pixel table has two axes, BadInput for a dim that is not a size.
        """
        if base.pixel.dim() != 2:
            raise BadCodebook(base.version, "shape", f"pixel is {list(base.pixel.shape)}, not [K, D]")
        widths = {name: facts.get(name) for name in ("feature_dim", "hidden_dim")}
        for name, width in widths.items():
            if width is not None and (type(width) is not int or width < 1):
                raise BadInput(f"facts.{name}", width, "a whole number from 1, or nothing")
        codes, code_dim = base.pixel.shape
        revision: str | None = facts.get("revision")
        return cls(base.family, base.model_hash, codes, code_dim, **widths, facts=dict(facts), revision=revision)

    def check(self, version: str, family: str, model_hash: str) -> None:
        """Raise BadCodebook (family, model_hash) unless both match this model."""
        if family != self.family:
            raise BadCodebook(version, "family", f"made for the family {family}, and this store is for {self.family}")
        if model_hash != self.model_hash:
            own = f"{self.facts.get('model_id', 'a model')}, {self.model_hash[:12]}"
            hashes = f"made for model {model_hash[:12]}, and this store is for {own}"
            raise BadCodebook(version, "model_hash", f"{hashes}; another model needs another store folder")


class IdentityFile:
    """The identity of a store in its file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def is_there(self) -> bool:
        """Whether the file exists."""
        return self._path.exists()

    def read(self) -> Identity:
        """Return the identity. Raises NotFound if there is none, BadCodebook (model) if the file is damaged."""
        try:
            return decode(Identity, read_file(self._path))
        except FileNotFoundError:
            raise NotFound(f"there is no codebook store in {self._path.parent}: it is not initialised") from None
        except (OSError, ValueError) as error:
            detail = f"{self._path} is damaged: {error}; move it away and start again: it is written again"
            raise BadCodebook("store", "model", detail) from None

    def write(self, identity: Identity) -> None:
        """Write the identity; the caller holds the store's lock."""
        replace_file(self._path, encode(identity))
