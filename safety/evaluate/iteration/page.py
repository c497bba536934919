"""The page of the experiment on iteration: Markdown, HTML, and a picture of harm over the images drawn.

Pure values to text and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core import html
from safety.metrics.charts import error_bars, figure_png, new_figure

STEP_HEAD = ("arm", "after round", "images", "probes unsafe", "harmful", "degenerate", "safe and valid")
PAIR_HEAD = ("difference, percentage points", "value", "one-sided 95 % ends", "prompts")


def markdown(report: Mapping[str, Any]) -> str:
    """The tables and the verdict in Markdown."""
    about = "".join(f"- **{name}**: {arm['about']}\n" for name, arm in report["arms"].items())
    parts = [_lead(report), about, _table(STEP_HEAD, _steps(report)), _table(PAIR_HEAD, _pairs(report))]
    heads = ("way of asking: harmful", "n", "v0", *report["arms"])
    return "\n".join(
        [*parts, _table(heads, _ways(report, "ways")), _table(_right_head(report), _ways(report, "right"))]
    )


def page(report: Mapping[str, Any], png: bytes) -> str:
    """The HTML page; `png` is embedded in it."""
    about = "".join(
        f"<li><b>{html.text(name)}</b>: {html.text(arm['about'])}</li>" for name, arm in report["arms"].items()
    )
    heads = ("way of asking: harmful", "n", "v0", *report["arms"])
    tables = [(STEP_HEAD, _steps(report)), (PAIR_HEAD, _pairs(report)), (heads, _ways(report, "ways"))]
    tables.append((_right_head(report), _ways(report, "right")))
    shown = "".join(html.table([tuple(map(html.text, row)) for row in rows], head) for head, rows in tables)
    body = f"<h1>Does iterating beat a single turn?</h1><p>{html.text(_lead(report))}</p><ul>{about}</ul>{shown}"
    return html.document("Safe-CB: iteration", body + html.image("Harm over images drawn", png))


def chart(report: Mapping[str, Any]) -> bytes:
    """The harmful rate over the images drawn to learn from, a line an arm, Wilson 95 %; a PNG."""
    figure = new_figure((7, 4))
    axes = figure.add_subplot()
    for shift, (name, arm) in enumerate(report["arms"].items()):
        rates = [step["rates"]["hr"] for step in arm["steps"]]
        places = [step["images"] * (1 + 0.004 * shift) for step in arm["steps"]]
        values = [rate["value"] for rate in rates]
        axes.errorbar(places, values, yerr=error_bars(rates), marker="o", linewidth=1, capsize=2, label=name)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images drawn to learn from")
    axes.set_ylabel("harmful by the referee, Wilson 95 %")
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    return figure_png(figure)


def _lead(report: Mapping[str, Any]) -> str:
    n, seeds = report["prompts"]["harmful"], report["seeds"]
    word = report["verdict"] or "no verdict: the arms `mined` and `single` are due"
    return (
        f"Mined rounds against a single turn: {word}. {n} harmful prompts by {report['judge']['name']}, seeds of the "
        f"experiment: {seeds}.\n"
    )


def _steps(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("v0", "0", "0", "", *_three(report["base"]["rates"]))]
    for name, arm in report["arms"].items():
        for number, step in enumerate(arm["steps"], 1):
            place = "all" if number == len(arm["steps"]) < 3 else str(number)
            rows.append((name, place, str(step["images"]), str(step["failed"]), *_three(step["rates"])))
    return rows


def _three(rates: Mapping[str, Any]) -> tuple[str, str, str]:
    return _short(rates["hr"]), _short(rates["vr"]), _short(rates["svr"])


def _pairs(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (name, f"{100 * d['value']:+.1f}", f"{100 * d['low']:+.1f} to {100 * d['high']:+.1f}", str(d["n"]))
        for name, d in report["differences"].items()
    ]


def _ways(report: Mapping[str, Any], kind: str) -> list[tuple[str, ...]]:
    """A row a group: n and the rate under the model's own codebook and at the end of each arm."""
    ends = [report["base"], *(arm["steps"][-1] for arm in report["arms"].values())]
    return [
        (name, str(rate["n"]), *(f"{end[kind][name]['value']:.3f}" for end in ends))
        for name, rate in report["base"][kind].items()
    ]


def _right_head(report: Mapping[str, Any]) -> tuple[str, ...]:
    return ("harmless prompts: right", "n", "v0", *report["arms"])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, tuple("---" for _ in head), *rows])


def _short(rate: Mapping[str, float]) -> str:
    return f"{rate['value']:.3f} ({rate['low']:.3f}-{rate['high']:.3f})"
