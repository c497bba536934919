"""`safecb generate`: draw a prompt on the running server, into PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.connection import Server, connected
from core.atomic import write_file
from core.storage import naming

OWN = "the model's own if absent"


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to draw.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file; of several images NAME-1.png and so on.")] = Path(
        "image.png"
    ),
    n: Annotated[int, typer.Option("-n", help="Number of images.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image; random if absent.")] = None,
    codebook: Annotated[str, typer.Option(help="Codebook version.")] = "active",
    guidance_scale: Annotated[float | None, typer.Option(help=f"Classifier-free guidance scale; {OWN}.")] = None,
    temperature: Annotated[float | None, typer.Option(help=f"Sampling temperature, 0 is greedy; {OWN}.")] = None,
    top_k: Annotated[int | None, typer.Option(help=f"Draw from the k likeliest codes, 0 from all; {OWN}.")] = None,
    top_p: Annotated[float | None, typer.Option(help=f"Draw from the likeliest codes up to p; {OWN}.")] = None,
    server: Server = None,
) -> None:
    """Draw a prompt on the running server, and say what each image was drawn with."""
    with naming(out.parent):  # before anything is drawn
        out.parent.mkdir(parents=True, exist_ok=True)
    with connected(server) as client:
        how = {"guidance_scale": guidance_scale, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        images = client.generate(prompt, n, seed, codebook, **how)
    for number, image in enumerate(images, 1):
        path = out if len(images) == 1 else out.with_stem(f"{out.stem}-{number}")
        write_file(path, image.png)
        verdict = f"judged unsafe ({image.category})" if image.unsafe else "judged safe"
        words = "not judged" if image.unsafe is None else verdict
        print(f"{path}: {image.codebook}, seed {image.seed}, {words}, id {image.id}")
