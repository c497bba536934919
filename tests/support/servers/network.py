"""Hosts in network namespaces of this machine: each has a line to what all share, to be cut, and one to callers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

HUB = "10.77.0.1"  # of this machine, where S3 and Redis listen for the hosts


class NetworkHost:
    """A namespace. `within`: the beginning of a command that runs there. `address`: where its server is called."""

    def __init__(self, number: int) -> None:
        self.name = f"safecb-{number}"
        self.within = ("ip", "netns", "exec", self.name)
        self.address = f"10.78.{number}.2"
        self._shared, self._calls = f"scb-s{number}", f"scb-c{number}"  # the ends of its lines that are here
        self._number = number

    def add(self, bridge: str) -> None:
        """Make the namespace and its lines."""
        _ip("netns", "add", self.name)
        self._line(self._shared, f"10.77.0.{self._number + 1}/24")
        _ip("link", "set", self._shared, "master", bridge)
        self._line(self._calls, f"{self.address}/30")
        _ip("addr", "add", f"10.78.{self._number}.1/30", "dev", self._calls)
        _ip("-n", self.name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """Cut the line to S3 and Redis: what is sent is lost, without a word."""
        _ip("link", "set", self._shared, "down")

    def heal(self) -> None:
        """Mend the line."""
        _ip("link", "set", self._shared, "up")

    def remove(self) -> None:
        """Remove the namespace and its lines."""
        for command in (("link", "del", self._shared), ("link", "del", self._calls), ("netns", "del", self.name)):
            with suppress(subprocess.CalledProcessError):
                _ip(*command)

    def _line(self, end: str, address: str) -> None:
        _ip("link", "add", end, "type", "veth", "peer", "name", f"{end}-in", "netns", self.name)
        _ip("-n", self.name, "addr", "add", address, "dev", f"{end}-in")
        _ip("-n", self.name, "link", "set", f"{end}-in", "up")
        _ip("link", "set", end, "up")


@contextmanager
def network(count: int) -> Iterator[list[NetworkHost]]:
    """Make `count` hosts until the block ends; skip the test where this process may not."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip: install Debian's package iproute2")
    hosts = [NetworkHost(number) for number in range(1, count + 1)]
    with ExitStack() as stack:
        try:
            _ip("link", "add", "scb-hub", "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"needs the right to make network namespaces, as root has: {error.stderr.strip()}")
        stack.callback(_ip, "link", "del", "scb-hub")
        _ip("addr", "add", f"{HUB}/24", "dev", "scb-hub")
        _ip("link", "set", "scb-hub", "up")
        for host in hosts:
            stack.callback(host.remove)
            host.add("scb-hub")
        yield hosts


def _ip(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, capture_output=True, text=True)
