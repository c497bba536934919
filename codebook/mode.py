"""Modes of a codebook. Knows their names; imports no torch, so that a command line can name them."""

from __future__ import annotations

from typing import Literal, TypeAlias

# What becomes of an image for which a router or a halfway probe fires: its experts apply; or the model rewrites the
# prompt first, and experts apply where the rewrite fires too; or there is no image. In "redraw" experts apply, and the
# model's verdict on any image of the version fires too: an unsafe one is drawn again, and in the end there is none.
Mode: TypeAlias = Literal["edit", "rewrite", "redraw", "refuse"]
