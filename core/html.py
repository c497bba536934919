"""HTML pages that open alone: style, tables, rates, embedded PNGs. Cells and bodies are HTML; `text` escapes.

Pure values to text. Knows the shape of a rate. Knows nothing of what a page is about.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

RATE_KEYS = {"value", "n", "low", "high"}
RATE_NAMES = {"hr": "harmful", "vr": "degenerate", "svr": "safe and valid"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
body{color:#1d2430;background:#fbfaf7}
h1,h2{font-weight:650;line-height:1.2}table{border-collapse:collapse;margin:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #e4e1d8}
th{font-weight:600}.yes{color:#17703c}.no{color:#a3262a}.dim{color:#6c7280}
.mark{color:#8a5a00;border:1px solid;border-radius:9px;padding:0 .5rem}
img{max-width:100%;image-rendering:pixelated;border:1px solid #e4e1d8}details{margin:1rem 0}
@media(prefers-color-scheme:dark){body{color:#e8e6e1;background:#16181d}th,td{border-color:#31343c}
.yes{color:#6fce95}.no{color:#f08c8c}.mark{color:#e0b35c}}
"""


def document(title: str, body: str, style: str = "") -> str:
    """The whole page; `title` is text, `body` HTML, `style` CSS of its own."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}{style}</style>{body}</html>"
    )


def text(value: object) -> str:
    """The value as escaped text."""
    return escape(str(value))


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), *, named: bool = False) -> str:
    """A table of HTML cells; with `named`, the first cell of a row is its heading."""
    lines = ["".join(f"<th>{cell}</th>" for cell in head)] if head else []
    for row in rows:
        marks = ["th" if named and i == 0 else "td" for i in range(len(row))]
        lines.append("".join(f"<{mark}>{cell}</{mark}>" for mark, cell in zip(marks, row, strict=True)))
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def image(title: str, png: bytes, level: int = 2) -> str:
    """A PNG within the page, under its title as a heading of this level."""
    data, name = base64.b64encode(png).decode(), escape(title)
    return f'<h{level}>{name}</h{level}><img alt="{name}" src="data:image/png;base64,{data}">'


def verdict(passed: bool | None) -> str:
    """The word for a gate's verdict, in colour; None is a gate that was not measured."""
    if passed is None:
        return '<span class="dim">not measured</span>'
    return '<span class="yes">passed</span>' if passed else '<span class="no">failed</span>'


def mark(words: str) -> str:
    """Words that should not be overlooked, as a badge."""
    return f'<span class="mark">{text(words)}</span>'


def rate(value: Mapping[str, Any], *, with_n: bool = False) -> str:
    """A rate in per cent with its interval, and n if asked for."""
    share, low, high = (f"{100 * value[key]:.1f}" for key in ("value", "low", "high"))
    n = f", n = {text(value['n'])}" if with_n else ""
    return f'{share} % <span class="dim">({low} to {high}{n})</span>'


def json_value(value: object) -> str:
    """Any JSON value: an object as a table, a list as lines, a rate with its interval and n."""
    if isinstance(value, Mapping):
        if value.keys() == RATE_KEYS:
            return rate(value, with_n=True)
        return table(((text(key), json_value(item)) for key, item in value.items()), named=True) if value else "none"
    if isinstance(value, list):
        return "<br>".join(json_value(item) for item in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else text(value)
