"""TCP line between the machines and their S3 server: it can be cut, fall silent, or delay and lose single answers.

Knows bytes of HTTP/1.1 requests. Knows nothing of what they store.
"""

from __future__ import annotations

import random
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from threading import Lock, Thread

NOTICE_S = 0.2  # within which an open connection notices a cut
SLOW_S = 1.0  # an answer that still comes in time
LATE_S = 4.0  # beyond the timeout of core/bucket for a small object
SLOW, LATE, NEVER, LATE_REQUEST = "answered slowly", "answered too late", "never answered", "carried out too late"
FAULTS = (SLOW, LATE, NEVER, LATE_REQUEST)
DELAYS_S = {SLOW: SLOW_S, LATE: LATE_S}  # of an answer
METHODS = (b"PUT ", b"GET ", b"HEAD ", b"DELETE ")  # with which the first bytes of a request begin


class Line:
    """A line to a port of this machine.

    cut: no connection stays or comes. silent: what is sent is dropped, and connections stay. faulty: the share of
    creates that fall victim to one of `fault_kinds`; `faults` counts them.
    """

    def __init__(self, port: int) -> None:
        self.cut, self.silent, self.faulty = False, False, 0.0
        self.fault_kinds: Sequence[str] = FAULTS
        self.faults: Counter[str] = Counter()
        self.creates = 0
        self._port, self._random, self._lock = port, random.Random(1), Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no connection any more."""
        self.cut = True
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Carry both ways until an end hangs up or the line is cut."""
        fault, is_dead = "", False
        while not self.cut:
            ready, _, _ = select.select([client, server], [], [], NOTICE_S)
            for end in ready:
                if not (data := end.recv(1 << 16)):
                    return
                is_dead = is_dead or self.silent  # a part of it is lost, so nothing after it makes sense
                if is_dead:
                    continue
                if end is client:
                    fault = self._fault(data) if data.startswith(METHODS) else fault
                    if fault == LATE_REQUEST:
                        time.sleep(LATE_S)
                        fault = ""
                    server.sendall(data)
                elif fault != NEVER:
                    time.sleep(DELAYS_S.get(fault, 0.0))
                    client.sendall(data)

    def _fault(self, head: bytes) -> str:
        """Choose what happens to the request that begins with `head`; "" for nothing."""
        if not head.startswith(b"PUT ") or b"if-none-match:" not in head.lower():
            return ""
        with self._lock:
            self.creates += 1
            if self._random.random() >= self.faulty:
                return ""
            fault = self._random.choice(self.fault_kinds)
            self.faults[fault] += 1
            return fault
