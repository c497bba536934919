"""Versions that visibly differ: pixel tables with rotated codes, and edits of the image head."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.swap import signed
from codebook.store import CodebookStore
from codebook.value import Codebook, HeadEdit

BASE = "v0"
WIDTH, RANK = 16, 2  # of an edit of the head


def publish(store: CodebookStore, count: int) -> list[str]:
    """Publish `count` versions, of either kind in turn, and return their names and BASE."""
    base, width = store.load(BASE), int(store.report(BASE)["feature_dim"])
    drafts = [_edited(base, width, n) if n % 2 else signed(base, n) for n in range(count)]
    manifests = [
        store.publish(
            draft, parent=BASE, job=f"scale-{n}", round=1, figures={}, gates={}, report={}, images={}, fence=1
        )
        for n, draft in enumerate(drafts)
    ]
    return [BASE, *(manifest.version for manifest in manifests)]


def _edited(base: Codebook, width: int, seed: int) -> Codebook:
    """Return the base codebook with an edit of the image head that applies to every image."""
    noise = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, WIDTH, generator=noise)).Q
    down, up = torch.randn(width, RANK, generator=noise), torch.randn(RANK, width, generator=noise)
    edit = HeadEdit(basis[None], torch.zeros(width), 0.1 * down[None], 0.1 * up[None])
    return replace(base, version="draft", output=edit)
