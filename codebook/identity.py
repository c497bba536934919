"""Identity of the model that a store belongs to, and the format of what is stored; every version must match it.

Knows names and sizes, and their file. Knows no tensor values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.atomic import read_file, replace_file
from core.errors import BadCodebook, BadInput, NotFound
from core.json_records import decode, encode, from_json

if TYPE_CHECKING:
    from codebook.value import Codebook  # brings torch along; a worker that waits for jobs has none

# Of all that lies in a store: files, records, their names. Raised only where an earlier release must not go on with it:
# a new field with a default needs no new number. Releases of one format may serve one store side by side.
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """One store, one model.

    codes, code_dim: the pixel table is [K, D]. feature_dim: M of a head edit and its halfway probe, hidden_dim: H of
    its router; None if the facts lack them.
    revision: the commit of a model of the hub, which every process of the service takes.
    facts: further facts of the engine about the model, JSON; for people, not checked.
    format: of the store, a whole number from 1; the file of a store of format 1 has none.
    """

    family: str
    model_hash: str
    codes: int
    code_dim: int
    feature_dim: int | None
    hidden_dim: int | None
    facts: dict[str, Any]
    revision: str | None = None
    format: int = 1

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
        feature_dim, hidden_dim = widths.values()
        own = (base.family, base.model_hash, codes, code_dim, feature_dim, hidden_dim, dict(facts))
        return cls(*own, revision=revision, format=FORMAT)

    @classmethod
    def parse(cls, name: str, data: bytes) -> Identity:
        """Return the identity in `data`, which is the content of `name`.

        Raises as check_format, and ValueError for fields that are missing or of another type.
        """
        check_format(name, data)
        return decode(cls, data)

    def check(self, version: str, family: str, model_hash: str) -> None:
        """Raise BadCodebook (family, model_hash) unless both match this model."""
        if family != self.family:
            raise BadCodebook(version, "family", f"made for the family {family}, and this store is for {self.family}")
        if model_hash != self.model_hash:
            own = f"{self.facts.get('model_id', 'a model')}, {self.model_hash[:12]}"
            hashes = f"made for model {model_hash[:12]}, and this store is for {own}"
            raise BadCodebook(version, "model_hash", f"{hashes}; another model needs another store folder")


def check_format(name: str, data: bytes) -> None:
    """Raise BadCodebook (format), naming both numbers, if `data`, the content of `name`, is of a later format.

    Raises ValueError for damaged data.
    """
    number = from_json(data).get("format")
    if type(number) is int and number > FORMAT:
        detail = f"{name} is of format {number}, and this release reads formats up to {FORMAT}: start a later one"
        raise BadCodebook("store", "format", detail)


class IdentityFile:
    """The identity of a store in its file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def is_there(self) -> bool:
        """Whether the file exists."""
        return self._path.exists()

    def read(self) -> Identity:
        """Return the identity. Raises NotFound if there is none, BadCodebook (format, model) as Identity.parse."""
        try:
            return Identity.parse(str(self._path), read_file(self._path))
        except FileNotFoundError:
            raise NotFound(f"there is no codebook store in {self._path.parent}: it is not initialised") from None
        except (OSError, ValueError) as error:
            detail = f"{self._path} is damaged: {error}; move it away and start again: it is written again"
            raise BadCodebook("store", "model", detail) from None

    def write(self, identity: Identity) -> None:
        """Write the identity; the caller holds the store's lock."""
        replace_file(self._path, encode(identity))
