"""The server process: binds the address, serves the app, prints when it is ready. `safecb serve` starts it.

Exit codes: 0 after a signal, 1 if the engine has failed or the disk is full, 2 if a restart cannot help (a bad setting,
model or address).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import uvicorn

from app.access.key_ring import Scope
from app.factory import create_app
from app.http.connections import Protocol, configured
from app.service import Service
from core import logs
from core.errors import BadSetting, NoRoom, NoStorage, SafeCBError
from core.settings import Settings
from core.wire import HOPELESS, last_words
from engine.registry import licence
from engine.scheduler.thread_budget import count_cores
from safety.judges.grammar import check_setting

log = logging.getLogger(__name__)

BIND_PATIENCE_S = 5.0  # beyond the drain time of a predecessor without a supervisor
TURN_S = 0.0005  # GIL switch interval: neither decode steps nor PNG encoding may hold up the other
POLL_EVERY_S = 0.1  # for a signal, and for the state of the engine
SETTLE_S = 1.0  # for a last request on connections that are open when the listeners close
QUIET_TURNS = 2  # of the event loop: one accepts a connection, the next attaches it (asyncio drops it after a close)
BACKLOG = 1024  # connections that wait in the kernel


class Server(uvicorn.Server):
    """uvicorn's server with a graceful drain: after a signal new requests are refused; `drain` waits for the others."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self.signals: list[signal.Signals] = []

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Record a signal; uvicorn installs this as the handler."""
        self._service.stopping = True
        self.signals.append(signal.Signals(sig))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, with a longer kernel backlog than the number of connections accepted together."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listeners, then the connections: whoever has connected gets a response first, within SETTLE_S.

        A listener that closes resets the connections that the kernel holds for it, and a connection that closes resets
        a request that is on its way. Every answer of a server that stops ends its connection; what is open then is new,
        or had a response whose head was out before: a stream's.
        """
        deadline, quiet = time.monotonic() + SETTLE_S, 0
        while quiet < QUIET_TURNS and time.monotonic() < deadline:
            await asyncio.sleep(0)  # the event loop accepts them
            quiet = 0 if any(_is_waited_for(listener) for listener in sockets or ()) else quiet + 1
        for listener in self.servers:
            listener.close()
        await asyncio.sleep(POLL_EVERY_S)
        while any(isinstance(c, Protocol) and c.is_open for c in self.server_state.connections):
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(POLL_EVERY_S)
        await super().shutdown(sockets)

    async def drain(self, seconds: float) -> None:
        """Wait for the accepted requests, up to `seconds` or until a second signal; then abort the rest."""
        left, deadline = set(self.server_state.tasks), time.monotonic() + seconds
        log.info("%s: the server stops; %d requests are being finished", self.signals[0].name, len(left))
        while left and time.monotonic() < deadline and len(self.signals) == 1:
            _, left = await asyncio.wait(left, timeout=POLL_EVERY_S)
        if left:
            why = f"after {seconds:.0f} s (SAFECB_DRAIN_S)" if len(self.signals) == 1 else "on another signal"
            log.warning("%d requests are given up %s; their callers get a 503 with Retry-After", len(left), why)
            self._service.give_up()


def main() -> int:
    """Serve with the settings of the environment until a signal. The module docstring lists the exit codes."""
    logs.configure("text")
    try:
        settings = Settings.from_environ(os.environ)
        logs.configure(settings.log)
        check_setting(settings.second_judge)
        check_exposure(settings)
        with bound(settings) as listener:
            return asyncio.run(_serve(settings, listener))
    except NoStorage as error:
        log.error("%s", error.about(error.path))
        last_words(error.about(error.path))
        return 1 if isinstance(error, NoRoom) else HOPELESS
    except SafeCBError as error:
        log.error("%s", error)
        last_words(str(error))
        return HOPELESS


def check_exposure(settings: Settings) -> None:
    """Raise BadSetting for a server without keys that other machines could reach, unless SAFECB_OPEN is on."""
    if settings.open or settings.keys or settings.api_keys or settings.operator_keys:
        return
    local = settings.host == "localhost"
    with suppress(ValueError):  # a host name
        local = local or ipaddress.ip_address(settings.host).is_loopback
    if not local:
        allowed = "a loopback address, or keys (SAFECB_KEYS), or SAFECB_OPEN=on where everybody may steer this server"
        raise BadSetting("SAFECB_HOST", settings.host, allowed)


def _is_waited_for(listener: socket.socket) -> bool:
    """Whether the kernel holds a connection that is not accepted yet."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def end_process(code: int) -> NoReturn:
    """Exit without joining threads: nothing interrupts a model that loads, and the files on disk are consistent."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


def bound(settings: Settings) -> socket.socket:
    """Return a socket bound to the address of `settings`. Raises BadSetting if it stays taken or is not local."""
    where, patience_s, began = f"{settings.host}:{settings.port}", settings.drain_s + BIND_PATIENCE_S, None
    while True:
        try:
            return _bind(settings)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or (began is not None and time.monotonic() > began + patience_s):
                raise BadSetting("SAFECB_HOST, SAFECB_PORT", where, f"a free address ({error.strerror})") from None
        if began is None:
            began = time.monotonic()
            log.warning("%s is taken; the server waits for it, for at most %.0f s", where, patience_s)
        time.sleep(0.2)


def _bind(settings: Settings) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # now, so that a second server fails to bind instead of sharing the callers
    except OSError:
        listener.close()
        raise
    return listener


async def _serve(settings: Settings, listener: socket.socket) -> int:
    """Serve until a signal (0) or until the engine fails (1). Raises the failure of a service that cannot be opened."""
    sys.setswitchinterval(TURN_S)
    app = create_app(settings)
    service: Service = app.state.service
    server = Server(configured(app, settings.trusted_proxies), service)
    for number in (signal.SIGTERM, signal.SIGINT):  # also before uvicorn starts, and after it has ended
        signal.signal(number, server.handle_exit)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (serving.done() or service.is_open or service.failure or server.signals):
        await asyncio.wait([serving], timeout=POLL_EVERY_S)
    if service.is_open and not server.signals:
        with suppress(OSError):  # stdout may be on a full disk
            print(f"Safe-CB is ready at {address(listener)} with codebook {service.live.active.version}")
            print("\n".join(chosen(service)), flush=True)
    while not (serving.done() or service.is_broken or service.failure or server.signals):
        await asyncio.wait([serving], timeout=POLL_EVERY_S)
    failure, broken, service.stopping = service.failure, service.is_broken, True
    if server.signals:
        await server.drain(settings.drain_s)
        failure = None
    server.should_exit = True
    await serving
    if failure is not None:
        raise failure
    return 1 if broken else 0


def chosen(service: Service) -> list[str]:
    """What the server has chosen, a line each, for whoever has started it."""
    settings, facts = service.settings, service.engine.facts
    everybody = service.keys.find(())
    steer = everybody is not None and everybody[1].may(Scope.ADMIN)
    may = "needed" if everybody is None else f"none: everybody may draw{' and steer' if steer else ''}"
    kept = f"{settings.keep_images} for {settings.keep_hours} h" if settings.keep_images else "none"
    parts = {
        "model": f"{facts.title}, {facts.image_size} pixels, weights {facts.model_hash[:12]}",
        "licence": licence(facts.family),
        "device": f"{settings.device}, {settings.dtype}, {settings.cores or count_cores()} cores",
        "store": f"{service.store.place.name}, {len(service.store.names())} versions",
        "Redis": "none: no improve jobs" if settings.redis_url is None else "as SAFECB_REDIS_URL says",
        "images judged": settings.judge,
        "second judge": settings.second_judge,
        "keys": may,
        "images kept": kept,
    }
    return [f"  {name:13}{value}" for name, value in parts.items()]


def address(listener: socket.socket) -> str:
    """Return the URL of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


if __name__ == "__main__":
    end_process(main())
