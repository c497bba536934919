"""Signatures of manifests, Ed25519: who can write the store cannot make a version that a checking server draws under.

A manifest has the hashes of its tensors, so that its signature covers them; reports, pictures and the active alias are
not covered. Knows keys in PEM files. Knows nothing of folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from core.errors import BadCodebook, BadSetting
from core.settings import Settings

_Read = TypeVar("_Read")
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----\n?", re.DOTALL)


class Signatures:
    """What a process signs with and checks by; without keys it does neither.

    signing: the key of new versions. public: a version must be signed by one of them.
    """

    def __init__(self, signing: Ed25519PrivateKey | None = None, public: tuple[Ed25519PublicKey, ...] = ()) -> None:
        self._signing, self._public = signing, public

    @classmethod
    def of(cls, settings: Settings) -> Signatures:
        """Read the keys of SAFECB_SIGNING_KEY and SAFECB_PUBLIC_KEYS.

        Raises BadSetting for a file that is not there or holds another kind of key, and for a signing key whose
        versions this process would refuse.
        """
        signing, public = None, tuple[Ed25519PublicKey, ...]()
        if settings.signing_key is not None:
            signing = _read("SAFECB_SIGNING_KEY", settings.signing_key, _private)
        if settings.public_keys is not None:
            public = _read("SAFECB_PUBLIC_KEYS", settings.public_keys, _publics)
        if signing is not None and public and signing.public_key() not in public:
            raise BadSetting(
                "SAFECB_PUBLIC_KEYS", str(settings.public_keys), "the public key of SAFECB_SIGNING_KEY too"
            )
        return cls(signing, public)

    @property
    def are_checked(self) -> bool:
        """Whether versions must be signed."""
        return bool(self._public)

    def check_signing(self) -> None:
        """Raise BadSetting if versions must be signed and there is no key to sign them with."""
        if self._public and self._signing is None:
            allowed = "the key of new versions, which SAFECB_PUBLIC_KEYS asks for"
            raise BadSetting("SAFECB_SIGNING_KEY", None, allowed)

    def sign(self, manifest: bytes) -> bytes | None:
        """Return the signature [64 bytes] of a manifest's file; None without a key."""
        return None if self._signing is None else self._signing.sign(manifest)

    def check(self, version: str, manifest: bytes, signature: bytes | None) -> None:
        """Raise BadCodebook (signature) unless one of the public keys has signed this manifest, or there is none."""
        if self._public and signature is None:
            raise BadCodebook(version, "signature", "manifest.sig is missing; `safecb codebooks sign` makes it")
        if self._public and not any(_holds(key, manifest, signature or b"") for key in self._public):
            raise BadCodebook(version, "signature", "manifest.sig fits none of the keys in SAFECB_PUBLIC_KEYS")


UNSIGNED = Signatures()


def _holds(key: Ed25519PublicKey, manifest: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return False
    return True


def _private(data: bytes) -> Ed25519PrivateKey:
    key = load_pem_private_key(data, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"it holds a {type(key).__name__}")
    return key


def _publics(data: bytes) -> tuple[Ed25519PublicKey, ...]:
    keys = [load_pem_public_key(block) for block in _PUBLIC.findall(data)]
    if not keys or not all(isinstance(key, Ed25519PublicKey) for key in keys):
        raise ValueError(f"it holds {', '.join(type(key).__name__ for key in keys) or 'no PUBLIC KEY block'}")
    return tuple(key for key in keys if isinstance(key, Ed25519PublicKey))


def _read(setting: str, path: Path, parse: Callable[[bytes], _Read]) -> _Read:
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadSetting(setting, str(path), f"a PEM file of Ed25519, without a password ({error})") from None
