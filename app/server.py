"""The server process: binds the address, serves the app, says when it is ready. `safecb serve` starts it.

Exit codes: 0 after a signal, 1 where the engine has failed, 2 where starting again cannot help (a bad setting, model
or address).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import time

import uvicorn

from app.child import HOPELESS
from app.factory import create_app
from app.service import Service
from codebook.errors import BadSetting, SafeCBError
from codebook.settings import Settings

log = logging.getLogger(__name__)

BIND_PATIENCE_S = 15.0  # a killed predecessor may still be finishing its requests
TURN_S = 0.0005  # after which a thread that waits for the interpreter gets it: drawing and pictures wait for neither
LOOK_EVERY_S = 1.0  # whether the engine still works
DRAIN_S = 10  # how long a stopping server finishes its requests


def main() -> int:
    """Serve with the settings of the environment until a signal; see the module for the exit codes."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    try:
        settings = Settings.from_environ(os.environ)
        with bound(settings) as listener:
            return asyncio.run(_serve(settings, listener))
    except SafeCBError as error:
        log.error("%s", error)
        return HOPELESS


def bound(settings: Settings) -> socket.socket:
    """Return a socket bound to the address of `settings`. Raises BadSetting where it stays taken or is none of ours."""
    deadline = time.monotonic() + BIND_PATIENCE_S
    while True:
        try:
            return _bind(settings)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                where = f"{settings.host}:{settings.port}"
                raise BadSetting("SAFECB_HOST, SAFECB_PORT", where, f"a free address ({error.strerror})") from None
            time.sleep(0.2)


def _bind(settings: Settings) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now, so that a second server meets an error and not half of our callers
    except OSError:
        listener.close()
        raise
    return listener


async def _serve(settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal (0) or until the engine fails (1). Raises the failure of a service that cannot be opened."""
    sys.setswitchinterval(TURN_S)
    app = create_app(settings)
    service: Service = app.state.service
    config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=DRAIN_S)
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn handles them while it serves; after a clean end it raises them again, and that shall change nothing.
        signal.signal(number, signal.SIG_IGN)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not serving.done() and not service.is_open and service.failure is None:
        await asyncio.wait([serving], timeout=0.1)
    if service.is_open:
        print(f"Safe-CB is ready at {address(listener)} with codebook {service.live.active.version}", flush=True)
    while not serving.done() and not service.is_broken and service.failure is None:
        await asyncio.wait([serving], timeout=LOOK_EVERY_S)
    broken = service.is_broken
    server.should_exit |= broken or service.failure is not None
    await serving
    if service.failure is not None:
        raise service.failure
    return 1 if broken else 0


def address(listener: socket.socket) -> str:
    """Return the URL at which a bound socket answers."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
