"""The cached results of a run, in a folder: each is computed once, written atomically, and read back on a resume.

Knows names, tensors and JSON. Knows nothing of their meaning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from core.atomic import replace_file
from core.storage import naming


class ResultCache:
    """A folder of finished results. No two processes make the same one simultaneously."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made if missing."""
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether tensors are cached as `name`."""
        return (self.folder / f"{name}.safetensors").exists()

    def tensors(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors cached as `name`, made and written first if there are none."""
        path = self.folder / f"{name}.safetensors"
        if not self.has(name):
            replace_file(path, save({key: t.detach().cpu().contiguous() for key, t in make().items()}))
        return load(path.read_bytes())

    def facts(self, name: str, make: Callable[[], Any]) -> Any:  # noqa: ANN401  (JSON)
        """Return the JSON value cached as `name`, made and written first if there is none."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            replace_file(path, json.dumps(make(), sort_keys=True, allow_nan=False).encode())
        return json.loads(path.read_bytes())
