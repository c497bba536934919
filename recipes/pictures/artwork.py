"""Sprites and overlays as RGBA pictures, drawn from openly licensed SVG and from code.

Noto (Apache-2.0), Twemoji (CC BY 4.0), Fluent Emoji flat (MIT) come from npm packages at recipe time. The patterns
(splatter, drips, snow, ...) are drawn here from seeded random shapes: stylised, and harmless as pictures.
"""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

LAYOUTS = 4  # seeded variants of every pattern


def svg_document(box: str, body: str) -> str:
    """An SVG document around `body` with this viewBox."""
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} viewBox="{box}">{body}</svg>'


def rasterise(svg: str, size: int) -> Tensor:
    """Draw an SVG at size x size: [4, size, size] float32 in [0, 1], premultiplied alpha."""
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size * 4, height=size * 4))
    picture = Image.open(io.BytesIO(png)).convert("RGBa").resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255


class IconSet:
    """One npm icon set in the iconify JSON format."""

    def __init__(self, npm_folder: Path, name: str) -> None:
        self._data: dict[str, Any] = json.loads((npm_folder / "@iconify-json" / name / "icons.json").read_text())

    def svg(self, icon: str) -> str:
        """The icon as an SVG document; KeyError if the set does not have it."""
        icon = self._data.get("aliases", {}).get(icon, {}).get("parent", icon)
        entry = self._data["icons"][icon]
        width = entry.get("width", self._data.get("width", 16))
        height = entry.get("height", self._data.get("height", 16))
        box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
        return svg_document(box, entry["body"])


def _blob(rng: random.Random, x: float, y: float, radius: float, points: int = 9, rough: float = 0.35) -> str:
    """A closed, irregular, smooth path around (x, y)."""
    ring = []
    for i in range(points):
        angle = 2 * math.pi * i / points
        r = radius * (1 + rng.uniform(-rough, rough))
        ring.append((x + r * math.cos(angle), y + r * math.sin(angle)))
    middle = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(ring, ring[1:] + ring[:1], strict=True)]
    path = f"M{middle[-1][0]:.1f},{middle[-1][1]:.1f}"
    for corner, end in zip(ring, middle, strict=True):
        path += f"Q{corner[0]:.1f},{corner[1]:.1f} {end[0]:.1f},{end[1]:.1f}"
    return path + "Z"


def _spots(rng: random.Random, count: int, low: float, high: float) -> list[tuple[float, float, float]]:
    """Well spread spots (x, y, radius) in the middle of a 64 x 64 square."""
    spots: list[tuple[float, float, float]] = []
    while len(spots) < count:
        x, y, r = rng.uniform(12, 52), rng.uniform(12, 52), rng.uniform(low, high)
        if all(math.hypot(x - a, y - b) > 0.9 * (r + c) for a, b, c in spots):
            spots.append((x, y, r))
    return spots


def _splatter(rng: random.Random) -> str:
    shapes = []
    for x, y, r in _spots(rng, 5, 5, 8):
        shapes.append(f'<path d="{_blob(rng, x, y, r, 11, 0.5)}" fill="#a80f16"/>')
        for _ in range(4):
            angle, far = rng.uniform(0, 2 * math.pi), r * rng.uniform(1.3, 1.9)
            shapes.append(
                f'<circle cx="{x + far * math.cos(angle):.1f}" cy="{y + far * math.sin(angle):.1f}" '
                f'r="{rng.uniform(0.9, 1.8):.1f}" fill="#a80f16"/>'
            )
        shapes.append(f'<path d="{_blob(rng, x - r / 4, y - r / 4, r / 3)}" fill="#d92a2f"/>')
    return "".join(shapes)


def _drips(rng: random.Random) -> str:
    x, path = 4.0, "M4,0"
    while x < 60:
        width, deep = rng.uniform(4, 7), rng.uniform(14, 42)
        path += f"L{x:.1f},{deep:.1f}q{width / 2:.1f},{width:.1f} {width:.1f},0L{x + width:.1f},10"
        x += width + rng.uniform(2, 4)
        path += f"L{x:.1f},10"
    return f'<path d="{path}L60,0Z" fill="#8f0d13"/><path d="M6,2L58,2" stroke="#c9262b" stroke-width="2"/>'


def _gashes(rng: random.Random) -> str:
    shapes = []
    tilt = rng.uniform(-4, 4)
    for i in range(3):
        x, y = 14 + 13 * i + rng.uniform(-2, 2), 12 + rng.uniform(-2, 4)
        dx, dy = 12 + tilt, 36 + rng.uniform(-4, 4)
        shapes.append(
            f'<path d="M{x:.1f},{y:.1f}q{dx / 2 + 5:.1f},{dy / 2:.1f} {dx:.1f},{dy:.1f}'
            f'q{-dx / 2 - 5:.1f},{-dy / 2:.1f} {-dx:.1f},{-dy:.1f}Z" '
            f'fill="#c1121f" stroke="#5c070c" stroke-width="2"/>'
        )
    return "".join(shapes)


def _mould(rng: random.Random) -> str:
    shapes = []
    for x, y, r in _spots(rng, 7, 4, 6.5):
        shapes.append(f'<path d="{_blob(rng, x, y, r, 13, 0.25)}" fill="#dfe6d8" stroke="#8ea48b" stroke-width="1.2"/>')
        shapes.append(f'<path d="{_blob(rng, x, y, r * 0.55)}" fill="#6f9a76"/>')
    return "".join(shapes)


def _rot(rng: random.Random) -> str:
    shapes = []
    for x, y, r in _spots(rng, 5, 5, 8.5):
        shapes.append(f'<path d="{_blob(rng, x, y, r, 9, 0.3)}" fill="#4a3b16"/>')
        shapes.append(f'<path d="{_blob(rng, x, y, r * 0.6, 9, 0.3)}" fill="#7d8b1f"/>')
    return "".join(shapes)


def _maggots(rng: random.Random) -> str:
    shapes = []
    for x, y, r in _spots(rng, 9, 4, 5):
        a = rng.uniform(0, math.pi)
        dx, dy = r * math.cos(a), r * math.sin(a)
        path = f"M{x - dx:.1f},{y - dy:.1f}Q{x + dy:.1f},{y - dx:.1f} {x + dx:.1f},{y + dy:.1f}"
        for colour, width in (("#6b5a36", 5.4), ("#f3e7c1", 3.4)):
            shapes.append(
                f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"/>'
            )
    return "".join(shapes)


def _snow(rng: random.Random) -> str:
    drift = "M6,64L6,56" + "".join(f"q4.3,{rng.uniform(-9, -4):.1f} 8.7,0" for _ in range(6)) + "L58,64Z"
    shapes = [f'<path d="{drift}" fill="#ffffff" stroke="#9cc3e6" stroke-width="1.2"/>']
    for x, y, r in _spots(rng, 8, 2.2, 3.6):
        shapes.append(
            f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="{r:.1f}" fill="#ffffff" stroke="#9cc3e6" stroke-width="1.2"/>'
        )
    return "".join(shapes)


def _confetti(rng: random.Random) -> str:
    colours = ["#2f80ed", "#f2c94c", "#9b51e0", "#27ae60", "#f2994a"]
    shapes = []
    for i, (x, y, _) in enumerate(_spots(rng, 14, 2.5, 3)):
        turn = rng.uniform(0, 180)
        shapes.append(
            f'<rect x="-2.4" y="-1.5" width="4.8" height="3" fill="{colours[i % 5]}" '
            f'transform="translate({x:.1f} {y:.1f}) rotate({turn:.0f})"/>'
        )
    return "".join(shapes)


PATTERN_DRAWERS: dict[str, Callable[[random.Random], str]] = {
    "splatter": _splatter,
    "drips": _drips,
    "gashes": _gashes,
    "mould": _mould,
    "rot": _rot,
    "maggots": _maggots,
    "snow": _snow,
    "confetti": _confetti,
}


def draw_pattern(pattern: str, layout: int, size: int) -> Tensor:
    """One overlay, [4, size, size] float32 premultiplied; the layout is its seed."""
    body = PATTERN_DRAWERS[pattern](random.Random(f"{pattern}/{layout}"))
    return rasterise(svg_document("0 0 64 64", body), size)
