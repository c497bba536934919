"""The report of an evaluation: a Markdown table, and one HTML page that opens alone.

Pure values to text; all of it is escaped. The charts are in `safety/evaluate/charts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core import html
from safety.evaluate.charts import categories


def markdown(report: Mapping[str, Any], judge: str) -> str:
    """A Markdown table by one judge: a row a codebook; each share in per cent with its interval."""
    harmful, benign = categories(report, judge)
    about: Mapping[str, Any] = report.get("variants", {})
    heads = ["codebook", *(f"{name}: harmful" for name in harmful), *(f"{name}: degenerate" for name in harmful)]
    heads += [f"{name}: right" for name in benign]
    costs: Mapping[str, Any] = report.get("costs", {})
    timed = list(next(iter(costs.values()), {}))
    heads += [f"{group} image: {what}" for group in timed for what in ("steps", "time")]
    heads += ["seconds to make"] if about else []
    rows = []
    for version, result in report["versions"].items():
        rates, right = result["rates"][judge]["categories"], result["right"].get(judge, {})
        cells = [about[version]["about"] if version in about else version]
        cells += [_short(rates[name]["hr"]) for name in harmful] + [_short(rates[name]["vr"]) for name in harmful]
        cells += [_short(right[name]) for name in benign]
        cells += [f"{costs[version][group][what]:.2f}" for group in timed for what in ("steps", "seconds")]
        cells += [f"{about[version]['seconds']:.0f}" if version in about else ""] if about else []
        rows.append(cells)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(report: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The HTML page; `pictures` are PNGs by title, embedded in it."""
    judges = "".join(
        f"<li>{html.text(judge['name'])}, harmful above {judge['threshold']}, "
        f"version <code>{html.text(judge['version'][:16])}</code></li>"
        for judge in report["judges"]
    )
    body = (
        f"<h1>Evaluation of {html.text(report['model'])}</h1>"
        f"<p>{report['prompts']} prompts, seed {report['seed']}, the same seeds under every codebook, guidance "
        f"{report['guidance']['model']:g} ({report['guidance']['from_file']} prompts with the file's own). Intervals: "
        f"{html.text(report['intervals'])}.</p><h2>Judges</h2><ul>{judges}</ul>"
        f"<h2>Rates</h2>{_rates(report)}{_refused(report)}{_shares(report, 'right', 'The prompt is shown')}"
        f"{_shares(report, 'any_seed', 'Harm under any seed of a prompt')}"
        f"{_costs(report)}{_ways(report)}<h2>Against the first codebook</h2>{_paired(report)}{_harmless(report)}"
        f"{''.join(html.image(title, png) for title, png in pictures.items())}"
    )
    return html.document("Safe-CB evaluation", body)


def _rates(report: Mapping[str, Any]) -> str:
    rows = [
        (
            *(html.text(part) for part in (version, judge, name, group["hr"]["n"])),
            *(html.rate(group[key]) for key in html.RATE_NAMES),
        )
        for version, result in report["versions"].items()
        for judge, rates in result["rates"].items()
        for name, group in {"all": rates["all"], **rates["categories"]}.items()
    ]
    return html.table(rows, ("codebook", "judge", "category", "n", *html.RATE_NAMES.values()))


def _refused(report: Mapping[str, Any]) -> str:
    rows = [
        (*(html.text(part) for part in (version, name, rate["n"])), html.rate(rate))
        for version, result in report["versions"].items()
        for name, rate in result["refused"].items()
    ]
    return f"<h2>Refused</h2>{html.table(rows, ('codebook', 'category', 'n', 'share'))}" if rows else ""


def _shares(report: Mapping[str, Any], key: str, title: str) -> str:
    """A table of one rate a category, or nothing where there is none."""
    rows = [
        (*(html.text(part) for part in (version, judge, name, rate["n"])), html.rate(rate))
        for version, result in report["versions"].items()
        for judge, rates in result[key].items()
        for name, rate in rates.items()
    ]
    head = ("codebook", "judge", "category", "n", "share")
    return f"<h2>{html.text(title)}</h2>{html.table(rows, head)}" if rows else ""


def _costs(report: Mapping[str, Any]) -> str:
    """A table of what an image costs, or nothing where none were timed."""
    rows = [
        tuple(map(html.text, (version, group, cost["n"], f"{cost['steps']:.2f}", f"{cost['seconds']:.2f}")))
        for version, groups in report.get("costs", {}).items()
        for group, cost in groups.items()
    ]
    head = ("codebook", "prompts", "n", "steps, beside the first codebook's", "time, beside the first codebook's")
    return f"<h2>Cost of an image</h2>{html.table(rows, head)}" if rows else ""


def _ways(report: Mapping[str, Any]) -> str:
    """A table of each way of asking beside plain prompts, or nothing where no prompts are grouped by ways."""
    rows = [
        (
            *(html.text(part) for part in (version, judge, way, bar["harmful"]["n"], bar["plain"]["n"])),
            html.rate({**bar, "value": bar["difference"]}),
            html.text(bar["verdict"]),
            html.text("more plain ones" if bar["needs"] is None else bar["needs"]),
        )
        for version, result in report["versions"].items()
        for judge, bars in result["ways"].items()
        for way, bar in bars.items()
    ]
    head = ("codebook", "judge", "way", "n", "plain n", "harm beyond plain", "at most 5 points", "n needed")
    return f"<h2>Ways of asking beside plain prompts</h2>{html.table(rows, head)}" if rows else ""


def _harmless(report: Mapping[str, Any]) -> str:
    rows = [
        (*(html.text(part) for part in (version, judge, change["n"])), html.rate(change))
        for version, judges in report["harmless_beside_the_first"].items()
        for judge, change in judges.items()
    ]
    head = ("codebook", "judge", "n", "change of the share that shows its prompt")
    return f"<p>Harmless prompts, all together:</p>{html.table(rows, head)}" if rows else ""


def _paired(report: Mapping[str, Any]) -> str:
    rows = [
        tuple(html.text(part) for part in (version, judge, pair["won"], pair["lost"], f"{pair['p']:.2g}"))
        for version, judges in report["beside_the_first"].items()
        for judge, pair in judges.items()
    ]
    head = ("codebook", "judge", "became safe", "ceased to be", "McNemar p")
    return html.table(rows, head) if rows else "<p>there is only one</p>"


def _short(rate: Mapping[str, float]) -> str:
    return f"{100 * rate['value']:.1f} ({100 * rate['low']:.1f}-{100 * rate['high']:.1f}, {rate['n']})"
