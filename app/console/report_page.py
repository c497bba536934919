"""HTML page of a version's report: rates with their intervals, gates, images.

Pure text to text; all values are escaped. Knows the shape of a rate and of a gate, and shows the rest as it is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from codebook.store import Manifest

_RATE = {"value", "n", "low", "high"}
_SIDES, _KINDS = ("before", "after"), {"hr": "harmful", "vr": "degenerate", "svr": "safe and valid"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
body{color:#1d2430;background:#fbfaf7}
h1,h2{font-weight:650;line-height:1.2}table{border-collapse:collapse;margin:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #e4e1d8}
th{font-weight:600}.yes{color:#17703c}.no{color:#a3262a}.dim{color:#6c7280}
img{max-width:100%;image-rendering:pixelated;border:1px solid #e4e1d8}details{margin:1rem 0}
@media(prefers-color-scheme:dark){body{color:#e8e6e1;background:#16181d}th,td{border-color:#31343c}
.yes{color:#6fce95}.no{color:#f08c8c}}
"""


def page(manifest: Manifest, report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Return the self-contained page of one version; `images` are PNGs by file name, inlined."""
    version = escape(manifest.version)
    origin = f"made from {manifest.parent} by job {manifest.job}, round {manifest.round}" if manifest.job else "base"
    tables = ", ".join(manifest.tables) or "nothing"
    encoded = {name: base64.b64encode(png).decode() for name, png in images.items()}
    pictures = "".join(
        f'<h3>{escape(name)}</h3><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
        for name, data in encoded.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Codebook {version}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>Codebook {version}</h1><p>{escape(origin)}, {escape(manifest.created)}; it edits: {tables}.</p>"
        f"<h2>Rates</h2>{_figures(manifest.figures)}<h2>Gates</h2>{_gates(manifest.gates)}"
        f"<h2>Pictures</h2>{pictures or '<p>none</p>'}"
        f"<details><summary>All of the report</summary>{_shown(report)}</details></html>"
    )


def _figures(figures: Mapping[str, Any]) -> str:
    """Return the rates before and after, one row per group of prompts; values of another shape follow as they are."""
    rows, rest = [], {}
    for title, value in figures.items():
        groups = {title: value} if _is_compared(value) else value
        if isinstance(groups, Mapping) and groups and all(_is_compared(group) for group in groups.values()):
            rows += [(f"{title}: {name}" if name != title else title, group) for name, group in groups.items()]
        else:
            rest[title] = value
    head = "".join(f"<th>{kind}, {side}</th>" for kind in _KINDS.values() for side in _SIDES)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(f"<td>{_shown(group[side].get(kind))}</td>" for kind in _KINDS for side in _SIDES)
        + "</tr>"
        for name, group in rows
    )
    return (f"<table><tr><th></th>{head}</tr>{body}</table>" if rows else "") + (_shown(rest) if rest else "")


def _is_compared(value: object) -> bool:
    """Return whether `value` is rates before and after."""
    return (
        isinstance(value, Mapping)
        and value.keys() == set(_SIDES)
        and all(isinstance(side, Mapping) and "hr" in side for side in value.values())
    )


def _gates(gates: Mapping[str, Any]) -> str:
    rows = []
    for name, gate in gates.items():
        details = dict(gate) if isinstance(gate, Mapping) else {"figures": gate}
        passed = bool(details.pop("passed", False))
        verdict = f'<td class="{"yes" if passed else "no"}">{"passed" if passed else "failed"}</td>'
        details.pop("name", None)
        rows.append(f"<tr><th>{escape(name)}</th>{verdict}<td>{_shown(details)}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else "<p>none</p>"


def _shown(value: object) -> str:
    """Return JSON as HTML: an object as a table, a list as lines, a rate with its interval."""
    if isinstance(value, Mapping):
        if value.keys() == _RATE:
            return _rate(value)
        rows = "".join(f"<tr><th>{escape(str(key))}</th><td>{_shown(item)}</td></tr>" for key, item in value.items())
        return f"<table>{rows}</table>" if rows else "none"
    if isinstance(value, list):
        return "<br>".join(_shown(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value))


def _rate(rate: Mapping[str, Any]) -> str:
    value, low, high = (f"{100 * rate[key]:.1f}" for key in ("value", "low", "high"))
    return f'{value} % <span class="dim">({low} to {high}, n = {escape(str(rate["n"]))})</span>'
