"""The report of a version as one HTML page: rates with their intervals, gates, pictures.

Knows the shape of rates and gates, and shows the rest as it is; names of groups and gates are shown as stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codebook.store import Manifest
from core import html

_SIDES = ("before", "after")
SHORT = 12  # of the digits of a hash


def page(manifest: Manifest, report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Return the page of one version, which opens alone: `images` are PNGs by file name, embedded in it."""
    version = html.text(manifest.version)
    origin = f"made from {manifest.parent} by job {manifest.job}, round {manifest.round}" if manifest.job else "base"
    tables = ", ".join(manifest.tables) or "nothing"
    pictures = "".join(html.image(name, png, level=3) for name, png in images.items())
    body = (
        f"<h1>Codebook {version}</h1><p>{html.text(origin)}, {html.text(manifest.created)}; it edits: {tables}.</p>"
        f"{_run(report, manifest.self_judged)}"
        f"<h2>Rates</h2>{_figures(manifest.figures)}<h2>Gates</h2>{_gates(manifest.gates)}"
        f"<h2>Pictures</h2>{pictures or '<p>none</p>'}"
        f"<details><summary>All of the report</summary>{html.json_value(report)}</details>"
    )
    return html.document(f"Codebook {manifest.version}", body)


def _run(report: Mapping[str, Any], self_judged: Sequence[str]) -> str:
    """The policy, the second judge, and the categories by whether that judge knows them; "" where nothing is known."""
    rows = []
    policy, judges, covered = report.get("policy"), report.get("judges"), report.get("covered")
    if isinstance(policy, Mapping):
        rows.append(("policy", _named(policy)))
    if isinstance(judges, list) and judges and isinstance(judges[-1], Mapping):  # the first is the model
        rows.append(("second judge", _named(judges[-1])))
    if isinstance(covered, list):
        rows.append(("it knows", html.text(", ".join(map(str, covered)) or "none of the categories")))
    if self_judged:
        rows.append(("it does not know", f"{html.mark('self-judged')} {html.text(', '.join(self_judged))}"))
    return f"<h2>Run</h2>{html.table(rows, named=True)}" if rows else ""


def _named(value: Mapping[str, Any]) -> str:
    """A name with the beginning of its version."""
    return f'{html.text(value.get("name"))} <span class="dim">{html.text(str(value.get("version"))[:SHORT])}</span>'


def _figures(figures: Mapping[str, Any]) -> str:
    """The rates before and after, a row a group of prompts; values of another shape beneath, as JSON."""
    compared: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for title, value in figures.items():
        groups = {title: value} if _is_compared(value) else value
        if isinstance(groups, Mapping) and groups and all(_is_compared(group) for group in groups.values()):
            compared |= {f"{title}: {name}" if name != title else title: group for name, group in groups.items()}
        else:
            rest[title] = value
    head = ("", *(f"{kind}, {side}" for kind in html.RATE_NAMES.values() for side in _SIDES))
    rows = [
        (
            html.text(name),
            *(html.json_value(group[side].get(kind)) for kind in html.RATE_NAMES for side in _SIDES),
        )
        for name, group in compared.items()
    ]
    return (html.table(rows, head, named=True) if rows else "") + (html.json_value(rest) if rest else "")


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
        passed = details.pop("passed", False)
        details.pop("name", None)
        rows.append((html.text(name), html.verdict(passed), html.json_value(details)))
    return html.table(rows, named=True) if rows else "<p>none</p>"
