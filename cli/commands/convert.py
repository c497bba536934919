"""`safecb convert`: a checkpoint with pickled weights, written anew as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    folder: Annotated[Path, typer.Argument(help="The checkpoint, with pytorch_model.bin.")],
    new_folder: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")],
) -> None:
    """Write a checkpoint with pickled weights anew as safetensors. Nothing in a pickle is run."""
    from engine.weights.convert import convert as write_anew  # here: it brings torch, which few commands need

    for name in write_anew(folder.expanduser(), new_folder.expanduser()):
        print(f"{new_folder}/{name}")
