"""Page of the scale benchmark: each bar beside what was measured, then all figures.

Knows the results of the phases. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.results import table

Results = Mapping[str, Any]  # of one phase


@dataclass(frozen=True)
class Bar:
    """A bar that a phase must reach. value: from its results; None where it was not measured."""

    what: str
    bar: str
    value: Callable[[Results], float | None]
    is_met: Callable[[float], bool]

    def row(self, results: Results) -> dict[str, object]:
        """Return the row of the page."""
        value = self.value(results)
        state = "not measured" if value is None else "yes" if self.is_met(value) else "NO"
        shown: object = "-" if value is None else int(value) if value == int(value) else round(value, 3)
        return {"what": self.what, "bar": self.bar, "measured": shown, "met": state}


def _none(what: str, *names: str) -> Bar:
    """The bar of a sum of counts: none."""
    return Bar(what, "0", lambda results: float(sum(results[name] for name in names)), lambda value: value == 0)


def _size(name: str, least: int) -> Bar:
    """The bar of a count that makes the other figures of its phase mean what they say."""
    return Bar(name, f">= {least:,}", lambda results: float(results[name]), lambda count: count >= least)


def _seconds(what: str, limit: float, value: Callable[[Results], float | None]) -> Bar:
    return Bar(what, f"<= {limit:g} s", value, lambda seconds: seconds <= limit)


def _spread(group: str, name: str, figure: str) -> Callable[[Results], float | None]:
    """The figure of a spread in a group of them; None where it has no values."""

    def value(results: Results) -> float | None:
        figures: Mapping[str, float | None] = results[group][name] if name else results[group]
        return figures.get(figure)

    return value


def _outages(name: str) -> Callable[[Results], float | None]:
    """The sum of a count over the outages with a bar."""
    return lambda results: float(sum(results["outages"][kind][name] for kind in BARRED))


def _level(results: Results) -> float | None:
    levels = [results["outages"][kind]["seconds until level"] for kind in BARRED]
    return max(float(seconds) for parts in levels for seconds in parts.values())


def _attempts(results: Results) -> float | None:
    return float(sum(attempts - 1 for kind in BARRED for attempts in results["outages"][kind]["attempts of the jobs"]))


BARRED = ("line cut", "Redis away", "both")
BARS: Mapping[str, tuple[Bar, ...]] = {
    "moves": (
        _size("moves", 1000),
        _none("forks", "forks", "gaps in the epochs"),
        _none("moves lost, or without an answer", "lost", "not acknowledged", "failed calls"),
        _seconds("all servers follow, polls alone, p50", 0.5, _spread("seconds", "polls alone", "p50")),
        _seconds("all servers follow, polls alone, p99", 0.5, _spread("seconds", "polls alone", "p99")),
        _seconds("all servers follow, with hints, p50", 0.1, _spread("seconds", "with hints", "p50")),
        _seconds("all servers follow, with hints, p99", 0.1, _spread("seconds", "with hints", "p99")),
    ),
    "images": (
        _size("images", 5000),
        _size("moves: moves", 200),
        _none("images mixed", "mixed"),
        _none("images failed", "failed"),
        _none("forks and lost moves", "moves: forks", "moves: lost", "moves: gaps in the epochs"),
    ),
    "kills": (
        _size("servers killed", 20),
        _size("workers killed", 20),
        _seconds(
            "a job goes on, restart of the same machine, longest",
            90,
            _spread("seconds until a job goes on", "restart of the same machine", "max"),
        ),
        _seconds(
            "a job goes on, takeover by another machine, longest",
            90,
            _spread("seconds until a job goes on", "takeover by another machine", "max"),
        ),
        _none("jobs lost or unfinished", "jobs lost", "jobs not finished"),
        _none("rounds not published once", "rounds not published once"),
        _none("forks and lost moves", "moves: forks", "moves: lost", "moves: gaps in the epochs"),
        _none(
            "images mixed, or answers that the API does not document",
            "images mixed",
            "other than 200, a problem or a cut",
        ),
    ),
    "outages": (
        _size("seconds of the line", 30),
        Bar("images failed", "0", _outages("failed"), lambda value: value == 0),
        _seconds("all servers are level after the end, longest", 1.0, _level),
        Bar("second attempts of jobs", "0", _attempts, lambda value: value == 0),
        _none("jobs beside those that were accepted", "jobs not accepted", "jobs not finished"),
        _none("rounds not published once", "rounds not published once"),
    ),
    "answers": (
        _none("moves applied twice", "applied twice"),
        _none("forks and lost moves", "forks", "lost", "gaps in the epochs"),
        _none("rounds not published once", "rounds not published once"),
    ),
    "shares": (
        _size("requests", 10000),
        Bar(
            "share of a canary of 10 %",
            "9 % to 11 %",
            lambda results: results["share of the canary"],
            lambda share: abs(share - 0.1) <= 0.01,
        ),
        _none("images of another version", "images of another version than the share says"),
        _seconds(
            "no server draws a revoked version, longest", 1.0, _spread("seconds until no server draws it", "", "max")
        ),
        _none("images under it after that", "images under it after that"),
    ),
}


def rows(phases: Mapping[str, Results]) -> list[dict[str, object]]:
    """Return the rows of all bars of the phases that were measured."""
    return [{"phase": name, **bar.row(phases[name])} for name, bars in BARS.items() if name in phases for bar in bars]


def missed(phases: Mapping[str, Results]) -> list[str]:
    """Return the bars that are missed, in words."""
    return [f"{row['phase']}: {row['what']}: {row['measured']}" for row in rows(phases) if row["met"] == "NO"]


def page(about: Mapping[str, Any], phases: Mapping[str, Results]) -> list[str]:
    """Return the Markdown page."""
    lines = [
        "# Several machines on one bucket",
        "",
        "Written by `python -m benchmarks.scale`: three servers and two workers with homes of their own, one S3 bucket",
        f"(moto), one Redis, all on one machine. Bars that are missed: {'; '.join(missed(phases)) or 'none'}.",
        "",
    ]
    lines += [f"{key}: {value}  " for key, value in about.items()]
    lines += ["", *table(rows(phases))]
    for name, results in phases.items():
        lines += ["", f"## {name.capitalize()}", "", *table([*_figures(results)])]
    return lines


def _figures(results: Mapping[str, Any], group: str = "") -> Iterator[dict[str, object]]:
    """Yield a row for each figure, those of a group of groups with the names of both."""
    for name, value in results.items():
        what = f"{group}{name}"
        if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            yield from _figures(value, f"{what}: ")
        else:
            yield {"figure": what, "value": _cell(value)}


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(str(_cell(part)).replace("|", "/") for part in value) or "-"
    return f"{value:.3g}" if isinstance(value, float) else value
