"""Connections on which a test writes its own bytes."""

from __future__ import annotations

import socket

from tests.support.serving import PATIENCE_S


def raw(url: str) -> socket.socket:
    """A connection to the server at `url`."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
