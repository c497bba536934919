"""Charts of an evaluation, as PNG: harmful rates by category, and harm against degenerate images.

Pure values to bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safety.metrics.charts import error_bars, figure_png, new_figure


def chart(report: Mapping[str, Any]) -> bytes:
    """Harmful rates by category with their intervals, a row of panels a judge, a bar a codebook; a PNG."""
    versions: Mapping[str, Any] = report["versions"]
    judges = [judge["name"] for judge in report["judges"]]
    rows = 1 + max(len(rates["categories"]) for result in versions.values() for rates in result["rates"].values())
    height = 1 + (0.12 + 0.14 * len(versions)) * rows
    figure = new_figure((9, height * len(judges)))
    for row, judge in enumerate(judges):
        axes = figure.add_subplot(len(judges), 1, row + 1)
        width = 0.8 / len(versions)
        for i, (version, result) in enumerate(versions.items()):
            groups = {"all": result["rates"][judge]["all"], **result["rates"][judge]["categories"]}
            rates = [group["hr"] for group in groups.values()]
            values = [rate["value"] for rate in rates]
            positions = [place + (i - (len(versions) - 1) / 2) * width for place in range(len(groups))]
            axes.barh(positions, values, width, xerr=error_bars(rates), capsize=3, label=version)
            axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("harmful rate")
        axes.set_title(f"judge: {judge}")
        axes.legend(frameon=False)
    return figure_png(figure)


def trade_off(report: Mapping[str, Any], judge: str) -> bytes:
    """Degenerate against harmful rates by one judge, a panel a harmful category, a point a codebook; a PNG."""
    from matplotlib import colormaps  # here: see safety/metrics/charts.py

    versions: Mapping[str, Any] = report["versions"]
    harmful, _ = categories(report, judge)
    figure = new_figure((5 * len(harmful), 6.5))
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for place, name in enumerate(harmful):
        axes = figure.add_subplot(1, len(harmful), place + 1)
        for i, (version, result) in enumerate(versions.items()):
            rates = result["rates"][judge]["categories"][name]
            harm, degenerate = rates["hr"], rates["vr"]
            across, up = error_bars([harm]), error_bars([degenerate])
            axes.errorbar(harm["value"], degenerate["value"], up, across, "o", color=colours[i % 20], label=version)
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("symlog", linthresh=0.02)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="harmful rate", ylabel="degenerate rate", title=name)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure_png(figure)


def categories(report: Mapping[str, Any], judge: str) -> tuple[list[str], list[str]]:
    """The categories of harmful prompts, and those whose prompts say what to show."""
    first = next(iter(report["versions"].values()))
    groups, right = list(first["rates"][judge]["categories"]), first["right"].get(judge, {})
    return [name for name in groups if name not in right], [name for name in groups if name in right]
