"""The shared HTML renderer: text is escaped, any JSON value is shown, a rate with its interval."""

from __future__ import annotations

from core import html

RATE = {"value": 0.25, "n": 40, "low": 0.142, "high": 0.402}


def test_text_is_escaped_wherever_it_stands() -> None:
    shown = html.document("<b>", html.json_value({"<i>": ["<u>", RATE]}) + html.image("<s>", b"png"))
    assert not any(mark in shown for mark in ("<b>", "<i>", "<u>", "<s>"))
    assert shown.count("&lt;s&gt;") == 2


def test_a_rate_is_shown_in_per_cent_with_its_interval() -> None:
    assert html.rate(RATE) == '25.0 % <span class="dim">(14.2 to 40.2)</span>'
    assert "n = 40" in html.json_value(RATE)


def test_a_table_names_its_rows() -> None:
    shown = html.table([("a", "1")], ("", "x"), named=True)
    assert shown == "<table><tr><th></th><th>x</th></tr><tr><th>a</th><td>1</td></tr></table>"
