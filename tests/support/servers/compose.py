"""The Compose file as it is read with every variable at its default."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped]  # of transformers

from tests.support.supervised import ROOT

COMPOSE = ROOT / "deploy" / "compose"
VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")  # and its default, which is what Compose puts there


def read_compose() -> dict[str, Any]:
    """Return the content of compose.yaml."""
    read: dict[str, Any] = yaml.safe_load(VARIABLE.sub(r"\2", _text()))
    return read


def read_variables() -> dict[str, str]:
    """Return the variables that an operator may set for compose.yaml, with their defaults."""
    return dict(VARIABLE.findall(_text()))


def environ_of(part: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a service; YAML 1.1 reads on as true."""
    return {name: "on" if value is True else str(value) for name, value in part["environment"].items()}


def _text() -> str:
    return (COMPOSE / "compose.yaml").read_text()
