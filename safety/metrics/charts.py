"""Charts for a round's report, as PNG: spectra of Harmful Spaces, weights of codes, rates before and after.

Pure numbers to bytes. Matplotlib is imported with the first chart: most processes draw none, and start the sooner.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
BINS = 20


def spectra_png(reports: Mapping[str, Mapping[str, Any]]) -> bytes:
    """HarmfulSpace.to_dict() by name; values that hold no spectrum are passed over."""
    spectra = {name: space for name, space in reports.items() if "energies" in space}
    figure = new_figure((3.2 * len(spectra), 3))
    for place, (name, space) in enumerate(spectra.items()):
        energies, noise, rank = space["energies"], space["noise"], space["k"]
        axes = figure.add_subplot(1, len(spectra), place + 1)
        order = range(1, len(energies) + 1)
        colours = ["#a3262a" if i <= rank else "#c9c4b6" for i in order]
        axes.bar(order, energies, color=colours)
        axes.plot(order, noise, color="#1d2430", marker="_", linewidth=1, label="95 % of noise")
        axes.set_yscale("log")
        axes.set_title(f"{name}: {rank} kept", fontsize=10)
        axes.set_xlabel("direction")
        axes.legend(frameon=False, fontsize=8)
    return figure_png(figure)


def weights_png(weights: Sequence[float]) -> bytes:
    """Histogram of the codes' weights in (0, 1]; codes of weight 0 are left out."""
    figure = new_figure((5, 3))
    axes = figure.add_subplot()
    heavy = [weight for weight in weights if weight > 0]
    axes.hist(heavy, bins=BINS, range=(0, 1), color="#a3262a")
    axes.set_yscale("symlog")
    axes.set_xlabel("weight of a code")
    axes.set_ylabel("codes")
    axes.set_title(f"{len(heavy)} of {len(weights)} codes weigh more than 0", fontsize=10)
    return figure_png(figure)


def rates_png(figures: Mapping[str, Any]) -> bytes:
    """Harmful rates before and after with their intervals: in all, by category, by attack, by language."""
    groups = {"all": figures["harmful"]}
    for kind in ("categories", "attacks", "languages"):
        groups |= figures[kind]
    figure = new_figure((7, 1 + 0.4 * len(groups)))
    axes = figure.add_subplot()
    for shift, (side, colour) in zip((-0.2, 0.2), (("before", "#c9c4b6"), ("after", "#a3262a")), strict=True):
        rates = [group[side]["hr"] for group in groups.values()]
        positions = [row + shift for row in range(len(groups))]
        axes.barh(
            positions, [r["value"] for r in rates], 0.36, xerr=error_bars(rates), color=colour, capsize=2, label=side
        )
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("harmful rate, Wilson 95 %")
    axes.legend(frameon=False)
    return figure_png(figure)


def rounds_png(curve: Sequence[Mapping[str, Any]]) -> bytes:
    """The harmful rate after each round, and the failure rate of fresh prompts before each mined one; see report.point.

    A rate before round t stands at t - 1: it is of the same codebook as the rate after that round.
    """
    figure = new_figure((6, 3.2))
    axes = figure.add_subplot()
    series = [
        ("plain validation prompts", "#a3262a", [(p["round"], p["harmful"]) for p in curve]),
        ("fresh prompts of all strata", "#1d2430", [(p["round"] - 1, p["failing"]) for p in curve[1:]]),
    ]
    for shift, (label, colour, points) in zip((-0.04, 0.04), series, strict=True):
        shown = [(place + shift, rate) for place, rate in points if rate is not None]
        rates = [rate for _, rate in shown]
        axes.errorbar(
            [place for place, _ in shown], [rate["value"] for rate in rates], yerr=error_bars(rates), color=colour,
            marker="o", linewidth=1, capsize=2, label=label,
        )  # fmt: skip
    axes.set_xticks(
        [p["round"] for p in curve], [f"{p['round']}{'' if p['accepted'] else ' (not accepted)'}" for p in curve]
    )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("after round")
    axes.set_ylabel("judged unsafe, Wilson 95 %")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure_png(figure)


def error_bars(rates: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """The lengths of the intervals below and above the values, as matplotlib's xerr and yerr."""
    return [[r["value"] - r["low"] for r in rates], [r["high"] - r["value"] for r in rates]]


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure of so many inches, width and height."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
