"""`safecb key`: make a key for the file of SAFECB_KEYS."""

from __future__ import annotations

import hashlib
import secrets
import sys
from typing import Annotated

import typer

from app.access.key_ring import Scope, check_name

PREFIX = "safecb-"  # by which scanners of leaked secrets can know one


def key(
    name: Annotated[str, typer.Argument(help="Whose it is, for the file and the audit log.")],
    scopes: Annotated[str, typer.Option(help="Some of generate, flag, improve, publish, admin.")] = "generate,flag",
) -> None:
    """Print the file's entry of a new key; the key itself goes to standard error, and nowhere else."""
    chosen = [scope.strip() for scope in scopes.split(",")]
    if not set(chosen) <= set(Scope):
        raise typer.BadParameter(f"{scopes!r}; expected some of {', '.join(Scope)}", param_hint="--scopes")
    check_name("NAME", name)
    secret = PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    listed = ", ".join(f'"{scope}"' for scope in chosen)
    print(f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nscopes = [{listed}]')
    print(secret, file=sys.stderr)
