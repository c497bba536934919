"""Charts for a round's report, as PNG: how much of a Harmful Space is signal, and how harmful the codes are.

Pure numbers in, bytes out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

DPI = 110
BINS = 20


def spectra_png(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """What Space.told says, by name; values that hold no spectrum are passed over."""
    spectra = {name: told for name, told in found.items() if "energies" in told}
    figure = Figure(figsize=(3.2 * len(spectra), 3), layout="constrained")
    for place, (name, told) in enumerate(spectra.items()):
        energies, noise, rank = told["energies"], told["noise"], told["k"]
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
    """How many codes weigh how much, in (0, 1]; codes of weight 0 are left out."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    heavy = [weight for weight in weights if weight > 0]
    axes.hist(heavy, bins=BINS, range=(0, 1), color="#a3262a")
    axes.set_yscale("symlog")
    axes.set_xlabel("weight of a code")
    axes.set_ylabel("codes")
    axes.set_title(f"{len(heavy)} of {len(weights)} codes weigh more than 0", fontsize=10)
    return figure_png(figure)


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    return file.getvalue()
