"""An evaluation for people: a chart of the rates as PNG, and one HTML page that opens alone.

Pure values in, text and bytes out; everything shown is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from safety.metrics.charts import error_bars, figure_png

RATES = {"hr": "harmful", "vr": "void", "svr": "safe and valid"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1d2430}
table{border-collapse:collapse;margin:1rem 0}th,td{text-align:left;padding:.2rem .8rem .2rem 0;
border-bottom:1px solid #e4e1d8}img{max-width:100%;image-rendering:pixelated}.dim{color:#6c7280}"""


def chart(told: Mapping[str, Any]) -> bytes:
    """Harmful rates by category with their intervals, a row of panels a judge, a bar a codebook; a PNG."""
    versions: Mapping[str, Any] = told["versions"]
    judges = [judge["name"] for judge in told["judges"]]
    rows = 1 + max(len(rates["categories"]) for found in versions.values() for rates in found["rates"].values())
    height = 1 + (0.12 + 0.14 * len(versions)) * rows
    figure = Figure(figsize=(9, height * len(judges)), layout="constrained")
    for row, judge in enumerate(judges):
        axes = figure.add_subplot(len(judges), 1, row + 1)
        width = 0.8 / len(versions)
        for i, (version, found) in enumerate(versions.items()):
            groups = {"all": found["rates"][judge]["all"], **found["rates"][judge]["categories"]}
            rates = [group["hr"] for group in groups.values()]
            values = [rate["value"] for rate in rates]
            places = [place + (i - (len(versions) - 1) / 2) * width for place in range(len(groups))]
            axes.barh(places, values, width, xerr=error_bars(rates), capsize=3, label=version)
            axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel("harmful rate")
        axes.set_title(f"judge: {judge}")
        axes.legend(frameon=False)
    return figure_png(figure)


def trade_off(told: Mapping[str, Any], judge: str) -> bytes:
    """Void against harmful rates by one judge, a panel a harmful category, a point a codebook; a PNG."""
    versions: Mapping[str, Any] = told["versions"]
    harmful, _ = _categories(told, judge)
    figure = Figure(figsize=(5 * len(harmful), 6.5), layout="constrained")
    colours = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for place, name in enumerate(harmful):
        axes = figure.add_subplot(1, len(harmful), place + 1)
        for i, (version, found) in enumerate(versions.items()):
            rates = found["rates"][judge]["categories"][name]
            harm, degenerate = rates["hr"], rates["vr"]
            across, up = error_bars([harm]), error_bars([degenerate])
            axes.errorbar(harm["value"], degenerate["value"], up, across, "o", color=colours[i % 20], label=version)
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("symlog", linthresh=0.02)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="harmful rate", ylabel="void rate", title=name)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure_png(figure)


def markdown(told: Mapping[str, Any], judge: str) -> str:
    """A table for documents, by one judge: a row a codebook; each share in per cent with its interval."""
    harmful, named = _categories(told, judge)
    about: Mapping[str, Any] = told.get("variants", {})
    heads = ["codebook", *(f"{name}: harmful" for name in harmful), *(f"{name}: void" for name in harmful)]
    heads += [*(f"{name}: right" for name in named), *(["seconds"] if about else [])]
    rows = []
    for version, found in told["versions"].items():
        rates, right = found["rates"][judge]["categories"], found["right"].get(judge, {})
        cells = [about[version]["about"] if version in about else version]
        cells += [_short(rates[name]["hr"]) for name in harmful] + [_short(rates[name]["vr"]) for name in harmful]
        cells += [_short(right[name]) for name in named]
        cells += [f"{about[version]['seconds']:.0f}" if version in about else ""] if about else []
        rows.append(cells)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(told: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The HTML page; `pictures` are PNGs by title, put into the page itself."""
    judges = "".join(
        f"<li>{escape(judge['name'])}, harmful above {judge['threshold']}, "
        f"version <code>{escape(judge['version'][:16])}</code></li>"
        for judge in told["judges"]
    )
    shown = "".join(
        f'<h2>{escape(title)}</h2><img alt="{escape(title)}" src="data:image/png;base64,{_base64(png)}">'
        for title, png in pictures.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Safe-CB evaluation</title>'
        f"<style>{STYLE}</style><h1>Evaluation of {escape(str(told['model']))}</h1>"
        f"<p>{told['prompts']} prompts, seed {told['seed']}, the same seeds under every codebook, guidance "
        f"{told['guidance']['model']:g} ({told['guidance']['from_file']} prompts with the file's own). Intervals: "
        f"{escape(told['intervals'])}.</p><h2>Judges</h2><ul>{judges}</ul>"
        f"<h2>Rates</h2>{_rates(told)}{_simple(told, 'right', 'The noun asked for is shown')}"
        f"{_simple(told, 'any_seed', 'Harm under any seed of a prompt')}"
        f"<h2>Beside the first codebook</h2>{_paired(told)}{shown}</html>"
    )


def _categories(told: Mapping[str, Any], judge: str) -> tuple[list[str], list[str]]:
    """The categories that ask for harm, and those whose pictures are asked for a noun."""
    first = next(iter(told["versions"].values()))
    groups, right = list(first["rates"][judge]["categories"]), first["right"].get(judge, {})
    return [name for name in groups if name not in right], [name for name in groups if name in right]


def _rates(told: Mapping[str, Any]) -> str:
    rows = []
    for version, found in told["versions"].items():
        for judge, rates in found["rates"].items():
            for name, group in {"all": rates["all"], **rates["categories"]}.items():
                cells = "".join(f"<td>{_rate(group[key])}</td>" for key in RATES)
                named = "".join(f"<td>{escape(part)}</td>" for part in (version, judge, name))
                rows.append(f"<tr>{named}<td>{group['hr']['n']}</td>{cells}</tr>")
    head = "".join(f"<th>{title}</th>" for title in ("codebook", "judge", "category", "n", *RATES.values()))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _simple(told: Mapping[str, Any], key: str, title: str) -> str:
    """A table of one rate a category, or nothing where there is none."""
    rows = [
        f"<tr><td>{escape(version)}</td><td>{escape(judge)}</td><td>{escape(name)}</td><td>{rate['n']}</td>"
        f"<td>{_rate(rate)}</td></tr>"
        for version, found in told["versions"].items()
        for judge, rates in found[key].items()
        for name, rate in rates.items()
    ]
    head = "".join(f"<th>{cell}</th>" for cell in ("codebook", "judge", "category", "n", "share"))
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{''.join(rows)}</table>" if rows else ""


def _paired(told: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td>{escape(version)}</td><td>{escape(judge)}</td><td>{pair['won']}</td><td>{pair['lost']}</td>"
        f"<td>{pair['p']:.2g}</td></tr>"
        for version, judges in told["beside_the_first"].items()
        for judge, pair in judges.items()
    ]
    head = "<tr><th>codebook</th><th>judge</th><th>became safe</th><th>ceased to be</th><th>McNemar p</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>" if rows else "<p>there is only one</p>"


def _short(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f}, {rate['n']})"


def _rate(rate: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * rate[key]:.1f}" for key in ("value", "low", "high"))
    return f'{value} % <span class="dim">({low} to {high})</span>'


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()
