"""The page of a verification: verdict, checks with figures and limits, the judge's probes, sixteen images.

One file that opens alone; pure values to text, all of it escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from cli.verify.checks import Check, Status
from cli.verify.drawing import PROMPTS
from cli.verify.judging import PROBES
from cli.verify.verification import Verification
from core import html
from engine.model import Verdict
from engine.png import encode_png, to_bytes
from engine.registry import licence

LARGEST = 256  # pixels a side of an image in the grid
STYLE = """
.verdict{padding:.7rem 1rem;border-left:6px solid;background:#f1efe8;margin:1rem 0}
.verdict strong{font-size:1.3rem}.verdict.good{border-color:#17703c}.verdict.bad{border-color:#a3262a}
.images{display:grid;grid-template-columns:repeat(4,1fr);gap:.8rem;max-width:60rem}
.images.three{grid-template-columns:repeat(3,1fr);max-width:36rem}
figure{margin:0}figure img{width:100%;display:block}figcaption{font-size:.85rem;line-height:1.35;margin-top:.2rem}
td.status{white-space:nowrap}td.limit{color:#6c7280}
@media(prefers-color-scheme:dark){.verdict{background:#1f2229}}
h1,td{overflow-wrap:anywhere}
@media(max-width:40rem){.images{grid-template-columns:repeat(2,1fr)}
.checks tr{display:grid;grid-template-columns:7rem 1fr}.checks tr:first-child{display:none}
.checks td:nth-child(n+3){grid-column:1/-1}.checks .status,.checks th,.checks td:nth-child(3){border:0}
td.limit:not(:empty)::before{content:"limit: "}}
"""
WORDS = {
    "loading": "Weights, configuration and tokenizer are complete.",
    "tokens": "The likeliest tokens, under guidance, against those of the published code.",
    "logits": "Both read the same tokens; every code of every step is compared.",
    "pixel table": "What versions edit begins as what was published.",
    "pixels": "Random tokens, decoded by both.",
    "first image": "Drawn, decoded and judged, from a cold start after loading.",
    "prompts matter": "One seed, sixteen prompts.",
    "batch-invariance": "An image is the same alone and among others.",
    "speed": "Each image drawn, decoded and judged.",
    "judge": "Shares of unsafe on grey, on noise and on the first image.",
    "codes that survive": "Where the judge reads codes, it sees no edit that moves fewer than are lost here.",
    "judge's noise": "Smaller changes of a verdict than this mean nothing.",
    "memory": "Of this process, from loading on.",
}
_CLASS = {Status.PASSED: "yes", Status.FAILED: "no", Status.MEASURED: "dim", Status.NOT_MEASURED: "mark"}


def page(verification: Verification) -> str:
    """The HTML page."""
    body = "".join(_parts(verification))
    return html.document(f"{_title(verification)}: {_verdict(verification)}", body, STYLE)


def _parts(run: Verification) -> Iterator[str]:
    yield f"<h1>{html.text(_title(run))}</h1>{_banner(run)}<h2>Checks</h2>{_table(run.checks)}"
    if run.probes is not None:
        figures = (
            _figure(image, name, _scores(verdict))
            for image, name, verdict in zip(run.probes.images, PROBES, run.probes.verdicts, strict=True)
        )
        yield f'<h2>What the judge sees</h2><div class="images three">{"".join(figures)}</div>'
    if run.album is not None:
        grid = zip(run.album.images, PROMPTS, run.album.verdicts, strict=True)
        figures = (_figure(image, prompt, _short(verdict)) for image, prompt, verdict in grid)
        note = "Unsafe by most of the judge's questions; the figure is the mean of all."
        yield f'<h2>Sixteen prompts, one seed</h2><p class="dim">{note}</p><div class="images">{"".join(figures)}</div>'
    yield _facts(run)


def _title(run: Verification) -> str:
    """The model's name; of a folder not its path, which may be longer than a line."""
    return run.name if run.facts is None else run.facts.title


def _verdict(run: Verification) -> str:
    return "passed" if run.passed else "failed"


def _banner(run: Verification) -> str:
    failed, missing = run.of(Status.FAILED), run.of(Status.NOT_MEASURED)
    limited = len(run.of(Status.PASSED)) + len(failed)
    if failed:
        words = f"{len(failed)} of {limited} checks failed: {', '.join(failed)}."
    else:
        words = f"All {limited} checks that have a limit are within it."
    if missing:
        words += f" Not measured: {', '.join(missing)}."
    compared = f"Compared with {run.source}." if run.source else "Compared with no published code."
    kind = "good" if run.passed else "bad"
    return (
        f'<div class="verdict {kind}"><strong>{_verdict(run).capitalize()}</strong><br>{html.text(words)}<br>'
        f'<span class="dim">{html.text(compared)} {run.seconds:.0f} s in all.</span></div>'
    )


def _table(checks: list[Check]) -> str:
    rows = "".join(
        f'<tr><td class="status"><span class="{_CLASS[check.status]}">{check.status}</span></td>'
        f"<th>{html.text(check.name)}</th><td>{html.text(check.result)}"
        f'<br><span class="dim">{html.text(WORDS.get(check.name, ""))}</span></td>'
        f'<td class="limit">{html.text(check.limit)}</td></tr>'
        for check in checks
    )
    head = "<tr><th></th><th>check</th><th>result</th><th>limit</th></tr>"
    return f'<table class="checks">{head}{rows}</table>'


def _facts(run: Verification) -> str:
    if run.facts is None:
        return ""
    facts, report = run.facts, run.to_dict()
    rows = {
        "name": run.name,
        "family": f"{facts.family}; licence of its published weights: {licence(facts.family)}",
        "weights": f"sha256 {facts.model_hash[:16]}, {facts.dtype}",
        "image": f"{facts.image_size} pixels a side, {facts.tokens} tokens of {facts.codes} codes",
        "drawn with": f"guidance {facts.guidance:g}, temperature {facts.temperature:g}, top-k {facts.top_k or 'off'}, "
        f"top-p {'off' if facts.top_p == 1 else format(facts.top_p, 'g')}",
        "judge names": ", ".join(facts.categories),
        "computed on": run.computes_on,
        "by": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    }
    return f"<h2>Model</h2>{html.table(((name, html.text(value)) for name, value in rows.items()), named=True)}"


def _figure(image: Tensor, title: str, note: str) -> str:
    """One image [3, H, W] in [-1, 1] with its title and a note in HTML."""
    if image.shape[-1] > LARGEST:
        image = F.interpolate(image[None], (LARGEST, LARGEST), mode="area")[0]
    data, name = base64.b64encode(encode_png(to_bytes(image[None])[0], {})).decode(), html.text(title)
    return (
        f'<figure><img alt="{name}" src="data:image/png;base64,{data}"><figcaption>{name}<br>{note}</figcaption>'
        "</figure>"
    )


def _short(verdict: Verdict) -> str:
    words = f"unsafe {verdict.score:.2f}, {verdict.category}" if verdict.unsafe else f"safe {verdict.score:.2f}"
    return f'<span class="{"no" if verdict.unsafe else "dim"}">{html.text(words)}</span>'


def _scores(verdict: Verdict) -> str:
    return f'<span class="dim">{html.text("unsafe " + ", ".join(f"{score:.3f}" for score in verdict.scores))}</span>'
