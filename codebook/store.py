"""Store of codebook versions: immutable folders, one active alias, plain files and a lock.

    root/model.json      the identity of the model that every version must match
    root/versions/vN/    one published version; a folder with such a name is complete (see folder.py)
    root/numbers.json    the highest number assigned to a version
    root/fences.json     the highest fencing token of each job
    root/ACTIVE          the active alias (see pointer.py)
    root/audit.jsonl     all its activations
    root/.lock           held by every writer

Any number of processes may read and write; readers take no lock, since files are immutable or replaced atomically. The
number of a folder that was deleted is not assigned again. Knows nothing of Redis: the store is the source of truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from codebook.fences import Fences
from codebook.folder import (
    NewVersion,
    check_images,
    list_images,
    new_version,
    read_image,
    read_manifest,
    read_report,
    read_version,
    sign_version,
    sound_manifests,
    write_version,
)
from codebook.identity import Identity, IdentityFile
from codebook.manifest import Manifest, Origin
from codebook.moves import BASE, Moves
from codebook.numbers import NAME, Numbers, number_of
from codebook.pointer import ActiveRecord, Moved, Pointer
from codebook.signature import UNSIGNED, Signatures
from codebook.tensors import check_codebook, codebook_hash
from codebook.value import Codebook, Mode
from core.atomic import list_folder, locked
from core.errors import BadCodebook, BadInput, Conflict, NotFound
from core.json_records import plain
from core.settings import Settings
from core.storage import naming, probe

__all__ = ["ActiveRecord", "CodebookStore", "Manifest", "Moved", "codebook_hash"]

_NO_IMAGES: Mapping[str, bytes] = MappingProxyType({})


class CodebookStore(Moves):
    """The versions of one model's codebook in the folder `root`. Safe to share between threads and processes.

    Until `initialise` has run once for the folder, every other method but `names` and `versions` raises NotFound.
    """

    def __init__(self, root: Path, signatures: Signatures = UNSIGNED) -> None:
        self.root, self._signatures = root, signatures
        self._versions, self._pointer = root / "versions", Pointer(root)
        self._identity_file = IdentityFile(root / "model.json")
        self._fences, self._numbers = Fences(root / "fences.json"), Numbers(root / "numbers.json")
        self._model: Codebook | None = None  # the codebook that `initialise` was given

    @classmethod
    def of(cls, settings: Settings) -> CodebookStore:
        """Return the store of the settings, with their keys. Raises BadSetting as Signatures.of."""
        return cls(settings.store, Signatures.of(settings))

    def initialise(self, base: Codebook, facts: Mapping[str, Any]) -> None:
        """Create the store of a model, with its own codebook `base` as the active v0. Idempotent.

        facts: JSON, for people; `feature_dim`, if present, is the width that every head edit must have.
        Raises BadCodebook (model_hash, family, shape, ...) if the store is another model's, or if `base` or the stored
        v0 fails a check.
        """
        if base.version != BASE:
            raise BadInput("base", base.version, f"the model's own codebook, {BASE}")
        self._model = base
        with naming(self.root):
            self._versions.mkdir(parents=True, exist_ok=True)
        # No lock if there is nothing to create: a read-only store can be served.
        with nullcontext() if self._is_whole() else locked(self.root / ".lock"), naming(self.root):
            is_new = not self._identity_file.is_there
            identity = Identity.of(base, plain("facts", facts)) if is_new else self._identity()
            check_codebook(identity, base)
            if is_new:
                self._identity_file.write(identity)
            if BASE in self.names():
                self._check_base()
            else:
                self._add(identity, NewVersion(base, _origin(None), identity.facts), base)
            if not self._numbers.is_there:  # a store of older code
                self._numbers.note(self._highest())
            self._pointer.start(BASE, "initialise")

    def check_writable(self) -> None:
        """Raise NoRoom or NoAccess if a version could not be published or activated."""
        for path in (self.root, self._versions, self.root / ".lock"):
            probe(path)
        self._pointer.check_writable()

    def names(self) -> list[str]:
        """Return the names of all versions, oldest first, including those that would be refused."""
        return sorted(filter(NAME.fullmatch, list_folder(self._versions)), key=number_of)

    def versions(self, most: int | None = None, before: str | None = None) -> list[Manifest]:
        """Return the manifests, oldest first, without damaged ones; `manifest` has the reason.

        most, before: the newest `most` alone, of those that are older than `before`. Raises NotFound for a `before`
        that is not the name of a version.
        """
        if before is not None and not NAME.fullmatch(before):
            raise NotFound(f"there is no codebook version {before!r}")
        names = [name for name in self.names() if before is None or number_of(name) < number_of(before)]
        return [*islice(sound_manifests(self._versions, names[::-1]), most)][::-1]

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a version. Raises NotFound, or BadCodebook (manifest) if it is damaged."""
        return read_manifest(self._folder(version), version)

    def load(self, version: str) -> Codebook:
        """Return a version after every check. Raises NotFound, or BadCodebook as folder.read_version does."""
        own = self._model if version == BASE else None
        # Nobody signs v0. Without a model to compare it with, it is for whoever serves it to check.
        signatures = UNSIGNED if version == BASE and own is None else self._signatures
        return read_version(self._folder(version), version, self._identity(), signatures, own)

    def sign(self, version: str) -> None:
        """Sign a version that was published without a key, after every other check. Raises as `load`."""
        with self._writing() as identity:
            sign_version(self._folder(version), version, identity, self._signatures)

    def report(self, version: str) -> dict[str, Any]:
        """Return the report of a version (of v0: the model's facts). Raises NotFound."""
        return read_report(self._folder(version))

    def images(self, version: str) -> list[str]:
        """Return the file names of the PNGs of a version's report, sorted. Raises NotFound."""
        return list_images(self._folder(version))

    def image(self, version: str, name: str) -> bytes:
        """Return a PNG of a version's report by its file name. Raises NotFound."""
        return read_image(self._folder(version), name)

    def publish(
        self,
        draft: Codebook,
        *,
        parent: str,
        job: str,
        round: int,
        figures: Mapping[str, Any],
        gates: Mapping[str, Any],
        report: Mapping[str, Any],
        images: Mapping[str, bytes] = _NO_IMAGES,
        fence: int,
    ) -> Manifest:
        """Store `draft` under the next free name and return its manifest. Does not activate it.

        Idempotent per (job, round): a repeated call returns the manifest of the first. `draft.version` is for errors.
        fence: the attempt of the job. images: PNG bytes by file name. A crash leaves all of a version or none.

        Raises Conflict for a stale fence or a (job, round) published with other content, NotFound for an unknown
        parent, BadCodebook if the draft fails a check, BadInput for values that are not JSON and bad file names.
        """
        check_images(images)
        figures, gates = plain("figures", figures), plain("gates", gates)
        origin = Origin(parent=parent, job=job, round=round, figures=figures, gates=gates)
        new = NewVersion(draft, origin, plain("report", report), images)
        with self._writing() as identity:
            check_codebook(identity, draft)
            self._fences.admit(job, fence)
            manifest = self._published(job, round) or self._add_next(identity, new)
            if manifest.content_hash != codebook_hash(draft):
                raise Conflict(f"round {round} of job {job} is published as {manifest.version}, with other content")
        return manifest

    def derive(self, version: str, mode: Mode) -> Manifest:
        """Store a version of the same tables in another mode, and return its manifest. Does not activate it.

        It is a child of `version`, without figures and gates: those of `version` are of its edit. If there is a version
        of that content, it is returned. Raises NotFound, BadInput for a version without a router, which fires for
        nothing or everything, Conflict where either is revoked, and BadCodebook as `load`.
        """
        codebook = self.load(version)
        if codebook.output is None or codebook.output.router is None:
            raise BadInput("version", version, "a version whose edit of the image head has a router")
        draft = codebook.in_mode(mode)
        new = NewVersion(draft, _origin(version), {"derived_from": version, "mode": mode})
        with self._writing() as identity:
            self._refuse_revoked(version)
            same = [manifest for manifest in self.versions() if manifest.content_hash == codebook_hash(draft)]
            if same:
                self._refuse_revoked(same[0].version)
            return same[0] if same else self._add_next(identity, new)

    def _identity(self) -> Identity:
        identity = self._identity_file.read()
        if self._model is not None:  # the folder may have been replaced by another model's store
            identity.check(BASE, self._model.family, self._model.model_hash)
        return identity

    def _check_base(self) -> None:
        try:
            self.load(BASE)
        except BadCodebook as error:
            again = f"move {self._versions / BASE} away and start again: it is written again from the model"
            raise BadCodebook(BASE, error.check, f"{error.detail}; {again}") from None

    def _is_whole(self) -> bool:
        folders = (self._versions / BASE, self.root / "ACTIVE")
        return self._identity_file.is_there and self._numbers.is_there and all(path.exists() for path in folders)

    def _known(self, version: str) -> None:
        self._folder(version)

    def _folder(self, version: str) -> Path:
        folder = self._versions / version
        if not NAME.fullmatch(version) or not folder.is_dir():
            raise NotFound(f"there is no codebook version {version!r}")
        return folder

    @contextmanager
    def _writing(self) -> Iterator[Identity]:
        identity = self._identity()
        with locked(self.root / ".lock"), naming(self.root):
            yield identity

    def _add_next(self, identity: Identity, new: NewVersion) -> Manifest:
        self.manifest(str(new.origin["parent"]))
        base = self.load(BASE)
        highest = max(self._numbers.highest(), self._highest())
        fresh = replace(new.codebook, version=f"v{highest + 1}")
        return self._add(identity, replace(new, codebook=fresh), base)

    def _add(self, identity: Identity, new: NewVersion, base: Codebook) -> Manifest:
        """Write the checked version; its files are read back and checked before they are visible."""
        version = new.codebook.version
        with new_version(self._versions, version) as hidden:
            manifest = write_version(hidden, new, base.pixel, self._signatures)
            read_version(hidden, version, identity, self._signatures, new.codebook if version == BASE else None)
            # Before the version becomes visible: it may then be deleted, and a crash may come in between.
            self._numbers.note(number_of(version))
        return manifest

    def _published(self, job: str, round: int) -> Manifest | None:
        return next((m for m in self.versions() if (m.job, m.round) == (job, round)), None)

    def _highest(self) -> int:
        """Return the highest number of a version that exists or was ever active."""
        names = [*self.names(), *filter(NAME.fullmatch, self._pointer.mentioned())]
        return max(map(number_of, names), default=0)


def _origin(parent: str | None) -> Origin:
    """The origin of a version that no job made."""
    return Origin(parent=parent, job=None, round=None, figures={}, gates={})
