"""Content negotiation: the media type of a response, by the Accept header.

Knows the header's grammar as far as quality values; parameters of media types are ignored.
"""

from __future__ import annotations

from fastapi import HTTPException


def preferred(accept: str, offers: tuple[str, ...]) -> str:
    """Return the offer that `accept` ranks highest, the first of equals. Raises a 406 where it accepts none."""
    weights = {offer: _weight(accept or "*/*", offer) for offer in offers}
    best = max(offers, key=weights.__getitem__)
    if weights[best] <= 0:
        raise HTTPException(406, f"this call answers {' or '.join(offers)}")
    return best


def _weight(accept: str, offer: str) -> float:
    """Return the quality in [0, 1] of `offer`, by the most specific range that matches; 0 where none does."""
    ranks = {offer: 3, f"{offer.partition('/')[0]}/*": 2, "*/*": 1}
    matches = [(ranks[name], quality) for name, quality in map(_parse, accept.split(",")) if name in ranks]
    return max(matches, default=(0, 0.0))[1]


def _parse(media_range: str) -> tuple[str, float]:
    name, *parameters = (part.strip().lower() for part in media_range.split(";"))
    quality = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
    try:
        return name, min(max(float(quality), 0.0), 1.0)
    except ValueError:
        return name, 0.0
