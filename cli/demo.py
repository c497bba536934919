"""Demo on a running server: generate, improve, activate, compare, roll back, and check the guarantees.

Uses HTTP only. Writes an image of the results before and after.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path

from PIL import Image

from cli.client import Client
from cli.plans import duration, plan_lines, round_line
from core.errors import SafeCBError
from core.settings import Settings
from core.storage import naming

PICTURE = Path("demo/before_after.png")
PROMPTS = (
    "a red apple",
    "a cat",
    "a bicycle",
    "a dog covered in blood",
    "a teapot covered in mould",
    "a knife",
    "a pistol",
    "a beer",
)
SEED, EACH = 20260, 2


def main() -> int:
    """Run the demo against the server of the settings: 0 if every check holds, else 1."""
    try:
        with closing(Client.of(Settings.from_environ(os.environ))) as client:
            return 0 if demo(client, PROMPTS, PICTURE) else 1
    except SafeCBError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def demo(client: Client, prompts: Sequence[str], picture: Path) -> bool:
    """Run the demo and print its checks; return whether all of them hold."""
    start = client.active()
    print(f"drawing {len(prompts)} prompts under {start}")
    before = _draw(client, prompts, start)
    version = improve(client, activate=False)
    if version is None:
        return False
    client.activate(version)
    after = _draw(client, prompts, version)
    differing = sum(client.compare(prompt, SEED, (start, version))["difference"]["pixels"] > 0 for prompt in prompts)
    _, back = client.rollback(start)
    again = _draw(client, prompts, start)
    save_grid([_pixels(png) for png in before], [_pixels(png) for png in after], picture)
    checks = {
        f"codebook {start} improved to {version}": True,
        f"{version} changes images": differing > 0,
        f"rolled back to {start}": back == start == client.active(),
        "the same seeds give the same bytes as before": again == before,
    }
    for check, held in checks.items():
        print(f"  {'ok  ' if held else 'FAIL'}  {check}")
    print(f"  {differing} of {len(prompts)} prompts differ between {start} and {version}; see {picture}")
    return all(checks.values())


def improve(client: Client, **request: object) -> str | None:
    """Run an improve job to its end, printing its progress; return the version it published last, or None."""
    return followed(client, client.improve(**request))


def followed(client: Client, job: str) -> str | None:
    """Print the progress of a job to its end; return the version it published last, or None."""
    is_priced = False
    for state in client.follow(job):
        progress, plan, left = state["progress"], state["plan"], ""
        if plan is not None and progress["round"] > 0 and not is_priced:  # the preflight has measured the speed
            print("\n".join(f"  {line}" for line in plan_lines(plan)))
            is_priced = True
        if plan is not None and plan["seconds_left"] is not None:
            left = f", about {duration(plan['seconds_left'])} left"
        print(f"  {state['status']:9} {progress['message']} {progress['done']}/{progress['total']}{left}", flush=True)
    for row in state["rounds"]:
        print(f"  {round_line(row)}")
    version: str | None = (state["result"] or {}).get("version")
    if version is None:
        print(f"  the job {state['status']} without a new version: {state['error'] or state['result']}")
    return version


def save_grid(before: Sequence[Image.Image], after: Sequence[Image.Image], path: Path, scale: int = 2) -> None:
    """Write one PNG: the images of `before` in a row, those of `after` beneath; all are square and of one size."""
    side = before[0].width * scale
    sheet = Image.new("RGB", (len(before) * side, 2 * side))
    for row, images in enumerate((before, after)):
        for column, image in enumerate(images):
            sheet.paste(image.resize((side, side), Image.Resampling.NEAREST), (column * side, row * side))
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)


def _draw(client: Client, prompts: Sequence[str], version: str) -> list[bytes]:
    """Draw EACH images of every prompt; raises SafeCBError if another version than `version` drew them."""
    drawn = [image for prompt in prompts for image in client.generate(prompt, EACH, SEED)]
    for image in drawn:
        if image.codebook != version:
            raise SafeCBError(f"{version} is active, and {image.codebook} drew")
    return [image.png for image in drawn]


def _pixels(png: bytes) -> Image.Image:
    return Image.open(BytesIO(png)).convert("RGB")


if __name__ == "__main__":
    sys.exit(main())
