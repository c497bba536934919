"""Small codebooks, and a store that holds some: K = 16 codes, D = 4, features M = 6, states H = 5."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from codebook.router import Router
from codebook.store import CodebookStore, Manifest
from codebook.value import Codebook, HeadEdit

FACTS = {"model_id": "tiny", "grid": (4, 4), "feature_dim": 6, "hidden_dim": 5}


def base_book() -> Codebook:
    """Return the model's own codebook, v0."""
    return Codebook("v0", "janus", "a" * 64, _noise(0, 16, 4))


def pixel_draft(seed: int) -> Codebook:
    """Return a draft that edits the pixel table; each seed its own."""
    return replace(base_book(), version="draft", pixel=_noise(seed, 16, 4))


def output_edit(seed: int, *, routed: bool = True) -> HeadEdit:
    """Return an output edit of two experts, rank k = 2, tuned rank r = 3; its router reads states of H = 5."""
    basis = torch.linalg.qr(_noise(seed, 2, 6, 2)).Q
    router = Router(_noise(seed + 1, 3, 5), _noise(seed + 5, 3), torch.tensor([0, 1, 1])) if routed else None
    return HeadEdit(basis, _noise(seed + 2, 6), _noise(seed + 3, 2, 6, 3), _noise(seed + 4, 2, 3, 6), router)


def output_draft(seed: int, *, routed: bool = True) -> Codebook:
    """Return a draft that edits the output table only."""
    return replace(base_book(), version="draft", output=output_edit(seed, routed=routed))


def open_store(root: Path, versions: int = 0) -> CodebookStore:
    """Return an initialised store with `versions` published pixel edits, v0 active."""
    store = CodebookStore(root)
    store.initialise(base_book(), FACTS)
    for n in range(1, versions + 1):
        publish(store, pixel_draft(n), job="setup", round=n)
    return store


def publish(store: CodebookStore, draft: Codebook, **changes: object) -> Manifest:
    """Publish `draft` as round 1 of job "j", attempt 1, child of v0; `changes` override these."""
    usual: dict[str, Any] = {"parent": "v0", "job": "j", "round": 1, "fence": 1}
    empty: dict[str, Any] = {"figures": {}, "gates": {}, "report": {}}
    return store.publish(draft, **(usual | empty | changes))


def publish_active(store: CodebookStore, draft: Codebook, **changes: object) -> Manifest:
    """Publish as `publish` does, and activate the version."""
    manifest = publish(store, draft, **changes)
    store.activate(manifest.version, by="job j")
    return manifest


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
